"""A posterior that improves the encoder's output with a few gradient steps for each row."""

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import kl_divergence
from torch.overrides import TorchFunctionMode

from pyro_vae.posteriors.base import Posterior

__all__ = ["SemiAmortized"]


class _Given(TorchFunctionMode):
    """Makes standard normal draws return these numbers ``(S, D)``, column by column, for every row."""

    def __init__(self, noise: Tensor) -> None:
        super().__init__()
        self.noise, self.used = noise, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.Tensor.normal_:
            return func(*args, **(kwargs or {}))
        (draws,) = args
        first, self.used = self.used, self.used + draws.shape[-1]
        noise = self.noise[:, first : self.used]
        return noise.reshape(len(noise), *(1,) * (draws.dim() - 2), -1).expand(draws.shape)


class SemiAmortized(Posterior):
    r"""Any other family, with a few steps of its raw parameters up the row's ELBO, starting at the encoder's output.

    .. math:: \lambda_0 = \mathrm{network}(x), \qquad \lambda_{t+1} = \lambda_t +
        \eta \odot \nabla_{\lambda} \widehat{\mathrm{ELBO}}(x; \lambda_t), \qquad q(z \mid x) = q(z; \lambda_T)

    in training and wherever the guide runs. One network for all rows leaves an amortisation gap, and the steps close a
    part of it. The gradient goes through the steps, so network and model are trained for the result after them. The
    step sizes :math:`\eta`, one for each raw parameter, are learned too.

    The steps estimate the ELBO from the same few normal numbers, in pairs of opposite sign, for each row and step. So a
    row has one posterior. It is a member of the family, so all bounds and weights are valid, however rough the
    estimate. Families whose draws are not transformed normal draws, such as a mixture, use new draws.

    It works only within a :class:`~pyro_vae.VAE`, whose prior and decoder it calls. It costs about two runs of the
    decoder's network for each step and draw.

    Source: Kim et al., *Semi-Amortized Variational Autoencoders*, 2018; Marino et al., *Iterative Amortized Inference*,
    2018.

    Args:
        posterior: The family; its draws must have derivatives.
        steps: Number of steps T.
        step_size: Initial value of :math:`\eta`.
        num_draws: Number of draws in a step's estimate of the ELBO; even.
        max_norm: A row's gradient g becomes :math:`g / (1 + \|g\| / \text{max\_norm})`, which bounds a step.

    Raises:
        ValueError: if an argument is out of its range; when used, if it is not part of a VAE, or its draws have no
            derivatives.

    Example:
        >>> from pyro_vae import mlp_vae
        >>> from pyro_vae.likelihoods import Bernoulli
        >>> from pyro_vae.posteriors import DiagonalNormal
        >>> vae = mlp_vae((6,), 2, likelihood=Bernoulli(), posterior=SemiAmortized(DiagonalNormal(), steps=3))
        >>> vae.encode(torch.zeros(4, 6)).mean.shape
        torch.Size([4, 2])
    """

    noise: Tensor

    def __init__(
        self,
        posterior: Posterior,
        steps: int = 5,
        step_size: float = 0.05,
        num_draws: int = 4,
        max_norm: float = 5.0,
    ) -> None:
        super().__init__()
        if steps < 1 or num_draws < 1:
            raise ValueError(f"steps and num_draws must be at least 1, found {steps} and {num_draws}")
        if num_draws % 2:
            raise ValueError(f"num_draws must be even, because draws come in pairs of opposite sign; found {num_draws}")
        for name, value in (("step_size", step_size), ("max_norm", max_norm)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive, found {value}")
        self.posterior, self.steps, self.step_size = posterior, steps, step_size
        self.num_draws, self.max_norm = num_draws, max_norm
        self._joined: list[Any] = []  # prior and decoder, in a list, as they are parts of the model

    @property
    def arguments(self) -> tuple[str, ...]:
        """The keyword arguments of the likelihood."""
        return self._joined[1].arguments if self._joined else ()

    def join(self, prior: Any, decoder: Any) -> None:  # noqa: D102
        if prior.asks_encoder:
            raise ValueError(
                f"SemiAmortized does not work with a {type(prior).__name__}, which calls the encoder on inputs that "
                f"are not rows and have no ELBO: use another prior, or {type(self.posterior).__name__} alone"
            )
        self._joined[:] = [prior, decoder]

    def raw_shape(self, event_shape: Sequence[int]) -> tuple[int, ...]:  # noqa: D102
        return self.posterior.raw_shape(event_shape)

    def add_parameters(self, event_shape: tuple[int, ...]) -> None:  # noqa: D102
        self.posterior = self.posterior.for_event(event_shape)
        shape = self.raw_shape(event_shape)
        self.log_step = nn.Parameter(torch.full(shape, math.log(self.step_size)))
        half = torch.randn(self.num_draws // 2, math.prod(shape), generator=torch.Generator().manual_seed(0))
        half = half / half.square().mean(0).sqrt()
        self.register_buffer("noise", torch.cat([half, -half]), persistent=False)

    def forward(self, raw: Tensor) -> dist.TorchDistribution:
        """The posterior from the network alone, without steps."""
        return self.posterior(raw)

    def of_rows(  # noqa: D102
        self, raw: Tensor, x: Tensor, mask: Tensor | None = None, **arguments: Any
    ) -> dist.TorchDistribution:
        if not self._joined:
            raise ValueError(
                "SemiAmortized must be part of a VAE, whose ELBO it uses: pass it to mlp_vae, conv_vae or make_vae as "
                "posterior="
            )
        differentiated = torch.is_grad_enabled()
        entries = tuple(range(-len(self.log_step.shape), 0))
        with torch.enable_grad():
            for _ in range(self.steps):
                raw = raw if raw.requires_grad else raw.detach().requires_grad_()
                elbo = self._elbo(raw, x, mask, arguments)
                (gradient,) = torch.autograd.grad(elbo.sum(), raw, create_graph=differentiated)
                norm = (gradient.square().sum(entries, keepdim=True) + 1e-12).sqrt()
                raw = raw + self.log_step.exp() * gradient / (1 + norm / self.max_norm)
                raw = raw if differentiated else raw.detach()
        return self.posterior(raw)

    def _elbo(self, raw: Tensor, x: Tensor, mask: Tensor | None, arguments: dict[str, Any]) -> Tensor:
        """Each row's ELBO, from a few draws, ``(*B,)``."""
        prior, decoder = self._joined[0](), self._joined[1]
        q = self.posterior(raw)
        if not q.has_rsample:
            raise ValueError(
                f"SemiAmortized needs draws with derivatives, and those of {type(self.posterior).__name__} have none"
            )
        with _Given(self.noise):
            z = q.rsample(torch.Size((self.num_draws,)))
        try:
            rate = kl_divergence(q, prior)
        except NotImplementedError:
            rate = (q.log_prob(z) - prior.log_prob(z)).mean(0)
        taken = {name: value for name, value in arguments.items() if name in decoder.arguments}
        return decoder(z, None, mask, **taken).log_prob(x).mean(0) - rate
