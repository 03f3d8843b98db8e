r"""New rows from the aggregate posterior: a density fitted to the guide's posteriors of all training rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions.transforms import AffineTransform

from pyro_vae._support.flows import FlowKind, make_flow
from pyro_vae._support.names import lookup
from pyro_vae.data.rows import Inputs
from pyro_vae.distributions import Flow
from pyro_vae.generation.codes import Layout, draw_codes
from pyro_vae.inference.batch import rows_that_fit
from pyro_vae.inference.predictive import forward_trace
from pyro_vae.inference.structure import ContractError, sample_sites
from pyro_vae.pair import Pair
from pyro_vae.programs.running import evaluating, forked_random_state

__all__ = ["AggregatePosterior", "aggregate_posterior"]

_PATIENCE = 20  # epochs without a better density of the held-out codes
_BATCH = 256


@dataclass(frozen=True)
class AggregatePosterior:
    r"""A density fitted to the codes of many rows, used in place of the prior.

    Args:
        pair: The pair whose model turns codes into rows.
        density: The density of codes: batch ``()``, event ``(d,)``. With one latent per row, a code is that latent;
            with several it is their concatenation, in the model's order.
        layout: Where each latent is in a code.
    """

    pair: Pair
    density: TorchDistribution
    layout: Layout

    def sample(self, num_samples: int, *, given: Mapping[str, Any] | None = None, mean: bool = False) -> Tensor:
        r"""Draws new rows, :math:`z \sim \hat q(z),\ x \sim p(x \mid z)`: ``(num_samples, *E)``.

        Args:
            num_samples: Number of rows.
            given: Keyword arguments of the model, as in :meth:`Pair.sample <pyro_vae.Pair.sample>`. Codes do not depend
                on them.
            mean: Return :math:`E[x \mid z]` instead of a draw.
        """
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, found {num_samples}")
        given = dict(given or {})
        for name, value in given.items():
            if np.ndim(value) and len(value) != num_samples:
                raise ValueError(f"given[{name!r}] has {len(value)} rows: give one for each of the {num_samples} drawn")
        at = self.pair.mean_at if mean else self.pair.sample_at
        at_once = rows_that_fit(int(np.prod(self.pair.event_shape or (1,))))
        parts = []
        for start in range(0, num_samples, at_once):
            here = slice(start, min(start + at_once, num_samples))
            some = {name: value[here] if np.ndim(value) else value for name, value in given.items()}
            codes = self.density(torch.Size((here.stop - start,))).detach()
            parts.append(at(self.layout.split(codes), given=some))
        return torch.cat(parts)

    @torch.no_grad()
    def log_prob(self, z: Tensor | Mapping[str, Tensor]) -> Tensor:
        """The log-density at latents ``(N, L)``, or at several by name: ``(N,)``, in nats."""
        codes = self.layout.join(z) if isinstance(z, Mapping) else z
        return self.density.log_prob(torch.as_tensor(codes, dtype=self.pair.dtype, device=self.pair.device))


def aggregate_posterior(
    pair: Pair,
    x: Inputs,
    kind: Literal["mixture", "flow"] = "mixture",
    *,
    num_components: int = 10,
    flow: FlowKind = "spline",
    num_transforms: int = 3,
    hidden_dims: Sequence[int] = (64, 64),
    max_epochs: int = 200,
    draws_per_row: int = 1,
    seed: int = 0,
) -> AggregatePosterior:
    r"""Fits a density to the aggregate posterior of a trained pair, from which new rows can be drawn.

    .. math:: \hat q(z) \approx \frac{1}{N} \sum_n q(z \mid x_n)

    Training brings it close to the prior, but seldom equal: a draw from the prior may be far from every row's code,
    where the decoder was never trained. Draws from the fitted density lie where codes are, so rows decoded from them
    are more like the data. They no longer follow the model's distribution, and its evidence says nothing about them.

    Args:
        pair: A trained :class:`~pyro_vae.VAE` or any :class:`~pyro_vae.Pair` whose latents of a row are continuous and
            unbounded; several are fitted together.
        x: The rows that it was trained on.
        kind: ``"mixture"`` of normals with full covariances, by scikit-learn; or a ``"flow"``, by zuko.
        num_components: Components of the mixture.
        flow: ``"autoregressive"``, ``"coupling"`` or ``"spline"``.
        num_transforms: Transforms of the flow.
        hidden_dims: Widths of the layers that parametrise each transform.
        max_epochs: The most epochs of the flow's training, which stops early when a held-out tenth of the codes no
            longer gets more probable.
        draws_per_row: Draws from the guide for each row, to fit the density to.
        seed: Seeds those draws and the fit.

    Returns:
        The fitted density, which samples rows, see :class:`AggregatePosterior`.

    Raises:
        ContractError: if a latent is discrete or bounded.
        ValueError: if the kind is unknown, or there are fewer codes than components.
        ImportError: if ``kind`` is ``"flow"`` and zuko is not installed.

    Example:
        >>> from pyro_vae import mlp_vae
        >>> from pyro_vae.likelihoods import Normal
        >>> vae, x = mlp_vae((3,), latent_dim=2, likelihood=Normal()), torch.randn(200, 3)
        >>> aggregate = aggregate_posterior(vae, x, num_components=2)
        >>> aggregate.sample(5).shape, aggregate.log_prob(torch.zeros(4, 2)).shape
        (torch.Size([5, 3]), torch.Size([4]))

    Source: Ghosh et al., *From Variational to Deterministic Autoencoders*, 2020, for the mixture; Böhm & Seljak,
    *Probabilistic Autoencoder*, 2022, for the flow.
    """
    lookup(kind, ("mixture", "flow"), "kind of density")
    for name, value in (("num_components", num_components), ("draws_per_row", draws_per_row)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, found {value}")
    codes, layout = draw_codes(pair, x, draws_per_row, seed)
    _check_supports(pair, x, layout)
    if kind == "mixture":
        density: TorchDistribution = _mixture(codes, num_components, seed)
    else:
        with forked_random_state(pair.device):
            torch.manual_seed(seed)
            density = _flow(codes, flow, num_transforms, hidden_dims, max_epochs)
    return AggregatePosterior(pair, density, layout)


def _check_supports(pair: Pair, x: Inputs, layout: Layout) -> None:
    """Raises an error for bounded latents, because the fitted density would draw values outside their range."""
    one = pair.prepare(next(pair.check(x).chunks(1)))
    with forked_random_state(pair.device), evaluating(pair.model):
        sites = sample_sites(forward_trace(pair.programs[0], 1, one.forward))
    for name in layout.shapes:
        fn = sites[name]["fn"]
        try:
            reached = bool(fn.support.check(torch.full_like(sites[name]["value"], -1e4)).all())
            reached = reached and bool(fn.support.check(torch.full_like(sites[name]["value"], 1e4)).all())
        except (NotImplementedError, AttributeError):  # a flow has none
            continue
        if not reached:
            raise ContractError(
                f"the latent {name!r} has the support {fn.support}, but a density can be fitted here only to unbounded "
                f"latents: let the model draw its logarithm, for example"
            )


def _mixture(codes: Tensor, num_components: int, seed: int) -> TorchDistribution:
    from sklearn.mixture import GaussianMixture

    if len(codes) < num_components:
        raise ValueError(f"{num_components} components need as many codes, found {len(codes)}")
    fitted: Any = GaussianMixture(num_components, max_iter=500, random_state=seed)
    fitted.fit(codes.double().cpu().numpy())
    weights, locs, covariances = (
        torch.as_tensor(v).to(codes) for v in (fitted.weights_, fitted.means_, fitted.covariances_)
    )
    components = dist.MultivariateNormal(locs, scale_tril=torch.linalg.cholesky(covariances.double()).to(codes))
    return dist.MixtureSameFamily(dist.Categorical(probs=weights), components)


def _flow(codes: Tensor, kind: FlowKind, num_transforms: int, hidden_dims: Sequence[int], max_epochs: int) -> Any:
    loc, scale = codes.mean(0), codes.std(0).clamp_min(1e-6)
    flow = make_flow(kind, codes.shape[1], num_transforms, hidden_dims).to(codes)
    mixed = ((codes - loc) / scale)[torch.randperm(len(codes), device=codes.device)]
    held_out, train = mixed[: len(mixed) // 10], mixed[len(mixed) // 10 :]
    held_out = held_out if len(held_out) else train
    optimizer = torch.optim.Adam(flow.parameters(), 1e-3)
    best, best_state, since = -torch.inf, flow.state_dict(), 0
    for _ in range(max_epochs):
        for batch in train[torch.randperm(len(train), device=codes.device)].split(_BATCH):
            optimizer.zero_grad()
            (-flow().log_prob(batch).mean()).backward()
            torch.nn.utils.clip_grad_norm_(flow.parameters(), 10.0)
            optimizer.step()
        with torch.no_grad():
            found = float(flow().log_prob(held_out).mean())
        since += 1
        if found > best:
            best, since = found, 0
            best_state = {name: value.clone() for name, value in flow.state_dict().items()}
        if since == _PATIENCE:
            break
    flow.load_state_dict(best_state)
    flow.requires_grad_(requires_grad=False)
    return dist.TransformedDistribution(Flow(flow()), [AffineTransform(loc, scale, event_dim=1)])
