"""Pairs of programs, none of them a VAE of ours, whose guide is the exact posterior: what each tool must give is known.

Data come from the model by plain torch; evidence and posterior are closed forms that use nothing of pyro_vae.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_vae import Pair


@dataclass(frozen=True)
class Exact:
    """A pair with its data and what is known of them.

    Args:
        pair: The programs.
        data: Rows drawn from the model, with keyword arguments.
        log_evidence: Of each row, ``(N,)``; where a latent belongs to all rows, of all rows together, over N.
        posterior: Mean and standard deviation of each latent given the data, ``(N, *E)``.
        num_dims: Of x.
        simulate: Keyword arguments that rows of the model are drawn under, for any number of rows.
    """

    pair: Pair
    data: dict[str, Any]
    log_evidence: Tensor
    posterior: dict[str, tuple[Tensor, Tensor]]
    simulate: Callable[[int], dict[str, Any]] = field(default=lambda num: {})


def elsewhere(make: Callable[..., Exact]) -> Callable[..., Exact]:
    """Draws data by another seed than those that the tools start from, which would meet the very same numbers."""

    @functools.wraps(make)
    def made(*args: Any) -> Exact:
        torch.manual_seed(2718)
        return make(*args)

    return made


def normal(loc: Any, scale: Any) -> Any:
    return torch.distributions.Normal(torch.as_tensor(loc), torch.as_tensor(scale))


def plate(x: Tensor | None, batch_size: int | None) -> Any:
    return pyro.plate("data", batch_size if x is None else len(x), dim=-1)


@elsewhere
def two_observed(num: int = 200) -> Exact:
    """Both x and y are observed; y comes as a keyword argument."""

    def model(x=None, *, y=None, batch_size=None):
        with plate(x, batch_size):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("y", dist.Normal(z, 0.5), obs=y)
            return pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x, *, y):
        with plate(x, None):
            pyro.sample("z", dist.Normal((x + y) * 4 / 9, 1 / 3))

    z = torch.randn(num)
    x, y = z + 0.5 * torch.randn(num), z + 0.5 * torch.randn(num)
    joint = torch.distributions.MultivariateNormal(torch.zeros(2), torch.tensor([[1.25, 1.0], [1.0, 1.25]]))
    sd = torch.full((num,), 1 / 3)
    return Exact(
        Pair(model, guide), {"x": x, "y": y}, joint.log_prob(torch.stack([x, y], -1)), {"z": ((x + y) * 4 / 9, sd)}
    )


@elsewhere
def other_names(num: int = 200) -> Exact:
    """The same with methods of a plain class; the second site's argument has another name than the site."""

    class Programs:
        def model(self, x=None, *, targets=None, batch_size=None):
            with plate(x, batch_size):
                cause = pyro.sample("cause", dist.Normal(torch.zeros(()), 1.0))
                pyro.sample("outcome", dist.Normal(cause, 0.5), obs=targets)
                return pyro.sample("x", dist.Normal(cause, 0.5), obs=x)

        def guide(self, x, *, targets):
            with plate(x, None):
                pyro.sample("cause", dist.Normal((x + targets) * 4 / 9, 1 / 3))

    same, programs = two_observed(num), Programs()
    data = {"x": same.data["x"], "targets": same.data["y"]}
    return Exact(Pair(programs.model, programs.guide), data, same.log_evidence, {"cause": same.posterior["z"]})


@elsewhere
def two_levels(num: int = 200) -> Exact:
    """Two latents, neither called z: a, then b around it, then x around b."""

    def model(x=None, *, batch_size=None):
        with plate(x, batch_size):
            a = pyro.sample("a", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            b = pyro.sample("b", dist.Normal(a, 0.8).to_event(1))
            return pyro.sample("x", dist.Normal(b, 0.5).to_event(1), obs=x)

    def guide(x):
        with plate(x, None):
            b = pyro.sample("b", dist.Normal(x * 1.64 / 1.89, (1.64 * 0.25 / 1.89) ** 0.5).to_event(1))
            pyro.sample("a", dist.Normal(b / 1.64, (0.64 / 1.64) ** 0.5).to_event(1))

    x = 1.89**0.5 * torch.randn(num, 2)
    posterior = {
        "a": (x / 1.89, torch.full((num, 2), (0.89 / 1.89) ** 0.5)),
        "b": (x * 1.64 / 1.89, torch.full((num, 2), (1.64 * 0.25 / 1.89) ** 0.5)),
    }
    return Exact(Pair(model, guide), {"x": x}, normal(0.0, 1.89**0.5).log_prob(x).sum(-1), posterior)


_LOCS, _WEIGHTS = torch.tensor([-2.0, 0.5, 2.0]), torch.tensor([0.3, 0.2, 0.5])


@elsewhere
def mixture(num: int = 200) -> Exact:
    """The model enumerates a component k; z is around its centre, x around z."""

    def model(x=None, *, batch_size=None):
        with plate(x, batch_size):
            k = pyro.sample("k", dist.Categorical(_WEIGHTS), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(_LOCS[k], 0.7))
            return pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def of_components(x):
        """Log-weights, and mean and sd of z at each component, ``(N, 3)``."""
        logits = _WEIGHTS.log() + normal(_LOCS, (0.49 + 0.25) ** 0.5).log_prob(x[:, None])
        loc = (x[:, None] * 0.49 + _LOCS * 0.25) / 0.74
        return logits, loc, (0.49 * 0.25 / 0.74) ** 0.5

    def guide(x):
        logits, loc, sd = of_components(x)
        with plate(x, None):
            pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(logits=logits), dist.Normal(loc, sd)))

    x = _LOCS[torch.multinomial(_WEIGHTS, num, replacement=True)] + 0.74**0.5 * torch.randn(num)
    logits, loc, sd = of_components(x)
    probs, values = logits.softmax(-1), torch.arange(3.0)
    mean, mean_k = (probs * loc).sum(-1), (probs * values).sum(-1)
    posterior = {
        "k": (mean_k, ((probs * values**2).sum(-1) - mean_k**2).sqrt()),
        "z": (mean, ((probs * (loc**2 + sd**2)).sum(-1) - mean**2).sqrt()),
    }
    return Exact(Pair(model, guide), {"x": x}, logits.logsumexp(-1), posterior)


@elsewhere
def components_alone(num: int = 200) -> Exact:
    """A mixture with nothing else: the guide has no sites."""

    def model(x=None, *, batch_size=None):
        with plate(x, batch_size):
            k = pyro.sample("k", dist.Categorical(_WEIGHTS), infer={"enumerate": "parallel"})
            return pyro.sample("x", dist.Normal(_LOCS[k], 0.9), obs=x)

    x = _LOCS[torch.multinomial(_WEIGHTS, num, replacement=True)] + 0.9 * torch.randn(num)
    logits = _WEIGHTS.log() + normal(_LOCS, 0.9).log_prob(x[:, None])
    probs, values = logits.softmax(-1), torch.arange(3.0)
    mean = (probs * values).sum(-1)
    posterior = {"k": (mean, ((probs * values**2).sum(-1) - mean**2).sqrt())}
    return Exact(Pair(model, lambda x: None), {"x": x}, logits.logsumexp(-1), posterior)


@elsewhere
def guide_enumerates(num: int = 200) -> Exact:
    """A binary latent that the guide enumerates."""
    locs = torch.tensor([-1.0, 1.5])

    def log_odds(x):
        return normal(locs[1], 1.0).log_prob(x) - normal(locs[0], 1.0).log_prob(x) + math.log(0.4 / 0.6)

    def model(x=None, *, batch_size=None):
        with plate(x, batch_size):
            kind = pyro.sample("kind", dist.Bernoulli(torch.tensor(0.4)))
            return pyro.sample("x", dist.Normal(locs[kind.long()], 1.0), obs=x)

    def guide(x):
        with plate(x, None):
            pyro.sample("kind", dist.Bernoulli(logits=log_odds(x)), infer={"enumerate": "parallel"})

    x = locs[torch.bernoulli(torch.full((num,), 0.4)).long()] + torch.randn(num)
    both = torch.tensor([0.6, 0.4]).log() + normal(locs, 1.0).log_prob(x[:, None])
    probs = log_odds(x).sigmoid()
    return Exact(Pair(model, guide), {"x": x}, both.logsumexp(-1), {"kind": (probs, (probs * (1 - probs)).sqrt())})


@elsewhere
def words(num: int = 200) -> Exact:
    """Documents with a level, and three words in a plate of their own, each around a latent around the level."""

    def model(x=None, *, batch_size=None):
        with plate(x, batch_size):
            level = pyro.sample("level", dist.Normal(torch.zeros(()), 1.0))
            with pyro.plate("words", 3, dim=-2):
                meaning = pyro.sample("meaning", dist.Normal(level, 0.6))
                return pyro.sample("x", dist.Normal(meaning, 0.5), obs=None if x is None else x.T)

    spread = 0.36 + 0.25  # of a word around the level
    variance = 1 / (1 + 3 / spread)

    def guide(x):
        with plate(x, None):
            level = pyro.sample("level", dist.Normal(x.sum(-1) * variance / spread, variance**0.5))
            loc = (x.T * 0.36 + level * 0.25) / spread
            with pyro.plate("words", 3, dim=-2):
                pyro.sample("meaning", dist.Normal(loc, (0.36 * 0.25 / spread) ** 0.5))

    x = torch.randn(num, 1) + spread**0.5 * torch.randn(num, 3)
    joint = torch.distributions.MultivariateNormal(torch.zeros(3), torch.ones(3, 3) + spread * torch.eye(3))
    level = x.sum(-1) * variance / spread
    meaning = (x * 0.36 + level[:, None] * 0.25) / spread
    sd = (0.36 * 0.25 / spread + variance * (0.25 / spread) ** 2) ** 0.5
    posterior = {
        "level": (level, torch.full((num,), variance**0.5)),
        "meaning": (meaning, torch.full((num, 3), sd)),
    }
    return Exact(Pair(model, guide), {"x": x}, joint.log_prob(x), posterior)


@elsewhere
def shared_mean(num: int = 60) -> Exact:
    """A mean that belongs to all rows, and a level of each row around it."""
    x = 3.0 + 1.25**0.5 * torch.randn(num)
    precision = 1 / 4 + num / 1.25
    loc, sd = float(x.sum() / 1.25 / precision), precision**-0.5

    def model(x=None, *, batch_size=None):
        mean = pyro.sample("mean", dist.Normal(torch.zeros(()), 2.0))
        with plate(x, batch_size):
            level = pyro.sample("level", dist.Normal(mean, 1.0))
            return pyro.sample("x", dist.Normal(level, 0.5), obs=x)

    def guide(x):
        mean = pyro.sample("mean", dist.Normal(torch.tensor(loc), sd))
        with plate(x, None):
            pyro.sample("level", dist.Normal((x + 0.25 * mean) / 1.25, 0.2**0.5))

    joint = torch.distributions.MultivariateNormal(torch.zeros(num), 4 * torch.ones(num, num) + 1.25 * torch.eye(num))
    posterior = {
        "mean": (torch.tensor(loc), torch.tensor(sd)),
        "level": ((x + 0.25 * loc) / 1.25, torch.full((num,), (0.2 + (0.2 * sd) ** 2) ** 0.5)),
    }
    return Exact(Pair(model, guide), {"x": x}, (joint.log_prob(x) / num).expand(num), posterior)


def _linear(x, batch_size, decoder, *, rows=plate):
    with rows(x, batch_size):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        return pyro.sample("x", dist.Normal(decoder(z), 0.5).to_event(1), obs=x)


def _linear_truth(pair: Pair, decoder: nn.Linear, num: int) -> Exact:
    weight, loc = decoder.weight.detach(), decoder.bias.detach()
    x = loc + torch.randn(num, 2) @ weight.T + 0.5 * torch.randn(num, 3)
    joint = torch.distributions.MultivariateNormal(loc, weight @ weight.T + 0.25 * torch.eye(3))
    covariance = torch.linalg.inv(torch.eye(2) + weight.T @ weight / 0.25)
    mean = (x - loc) @ weight @ covariance / 0.25
    return Exact(pair, {"x": x}, joint.log_prob(x), {"z": (mean, covariance.diagonal().sqrt().expand(num, 2))})


def _linear_posterior(x: Tensor, decoder: nn.Linear) -> Any:
    precision = torch.eye(2) + decoder.weight.T @ decoder.weight / 0.25
    loc = (x - decoder.bias) @ decoder.weight @ torch.linalg.inv(precision) / 0.25
    return dist.MultivariateNormal(loc, precision_matrix=precision)


@elsewhere
def closures(num: int = 200) -> Exact:
    """Functions over modules that they close over; dropout, which evaluation must switch off."""
    decoder, dropout = nn.Linear(2, 3), nn.Dropout(0.5)

    def model(x=None, *, batch_size=None):
        return _linear(x, batch_size, lambda z: dropout(decoder(z)))

    def guide(x):
        with plate(x, None):
            pyro.sample("z", _linear_posterior(dropout(x), decoder))

    return _linear_truth(Pair(model, guide), decoder, num)


@elsewhere
def scaled(num: int = 200) -> Exact:
    """Both programs scaled by a tenth, in a plate that is a subsample of a thousand rows."""
    decoder = nn.Linear(2, 3)

    def some(x, batch_size):
        size = batch_size if x is None else len(x)
        return pyro.plate("data", 1000, subsample=torch.arange(size), dim=-1)

    def guide(x):
        with some(x, None):
            pyro.sample("z", _linear_posterior(x, decoder))

    model = functools.partial(_scaled_model, decoder, some)
    return _linear_truth(Pair(model, poutine.scale(guide, scale=0.1)), decoder, num)


def _scaled_model(decoder, rows, x=None, *, batch_size=None):
    with poutine.scale(scale=0.1):
        return _linear(x, batch_size, decoder, rows=rows)


@elsewhere
def sequences(num: int = 200) -> Exact:
    """Three steps, of which a row has the first few: masked after its end, where the guide draws what it likes."""

    def there(lengths):
        return torch.arange(3) < lengths[:, None]

    def model(x=None, *, lengths, batch_size=None):
        with plate(x, batch_size):
            parts = []
            for step in range(3):
                with poutine.mask(mask=step < lengths):
                    parts.append(pyro.sample(f"z_{step}", dist.Normal(torch.zeros(()), 1.0)))
            p_x = dist.Normal(torch.stack(parts, -1), 0.5)
            return pyro.sample("x", p_x.mask(there(lengths)).to_event(1), obs=x)

    def guide(x, *, lengths):
        with plate(x, None):
            for step in range(3):
                loc = torch.where(step < lengths, 0.8 * x[:, step], 50.0)
                with poutine.mask(mask=step < lengths):
                    pyro.sample(f"z_{step}", dist.Normal(loc, 0.2**0.5))

    lengths = torch.randint(1, 4, (num,))
    x = 1.25**0.5 * torch.randn(num, 3) * there(lengths)
    log_evidence = (normal(0.0, 1.25**0.5).log_prob(x) * there(lengths)).sum(-1)
    posterior = {
        f"z_{step}": (torch.where(step < lengths, 0.8 * x[:, step], math.nan), torch.full((num,), 0.2**0.5))
        for step in range(3)
    }
    return Exact(
        Pair(model, guide),
        {"x": x, "lengths": lengths},
        log_evidence,
        posterior,
        simulate=lambda num: {"lengths": torch.arange(num) % 3 + 1},
    )


@elsewhere
def conditional(num: int = 200) -> Exact:
    """Labels for each row, and a width that is the same for all, a number; an argument may be None."""
    shift = nn.Parameter(torch.tensor([-3.0, 3.0]))

    def model(x=None, *, labels, width=1.0, other=None, batch_size=None):
        assert other is None
        with plate(x, batch_size):
            z = pyro.sample("z", dist.Normal(shift[labels], 1.0))
            return pyro.sample("x", dist.Normal(z, width), obs=x)

    def guide(x, *, labels, width):
        variance = 1 / (1 + width**-2)
        with plate(x, None):
            pyro.sample("z", dist.Normal((shift[labels] + x / width**2) * variance, variance**0.5))

    labels, width = torch.arange(num) % 2, 0.5
    x = shift.detach()[labels] + 1.25**0.5 * torch.randn(num)
    posterior = {"z": ((shift.detach()[labels] + 4 * x) / 5, torch.full((num,), 0.2**0.5))}
    return Exact(
        Pair(model, guide),
        {"x": x, "labels": labels, "width": width, "other": None},
        normal(shift.detach()[labels], 1.25**0.5).log_prob(x),
        posterior,
        simulate=lambda num: {"labels": torch.arange(num) % 2, "width": width},
    )


@elsewhere
def half_observed(num: int = 200) -> Exact:
    """x and y, both with NaN where an entry is missing."""

    def model(x=None, *, y=None, mask=None, y_mask=None, batch_size=None):
        with plate(x, batch_size):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            p_y, p_x = dist.Normal(z, 0.5), dist.Normal(z[..., None], 0.5).expand([*z.shape, 2])
            pyro.sample("y", p_y if y_mask is None else p_y.mask(y_mask), obs=y)
            return pyro.sample("x", (p_x if mask is None else p_x.mask(mask)).to_event(1), obs=x)

    def posterior(x, y, mask, y_mask):
        precision = 1 + 4 * (mask.sum(-1) + y_mask)
        return 4 * ((x * mask).sum(-1) + y * y_mask) / precision, precision**-0.5

    def guide(x, *, y, mask, y_mask):
        loc, scale = posterior(x, y, mask.to(x), y_mask.to(x))
        with plate(x, None):
            pyro.sample("z", dist.Normal(loc, scale))

    z = torch.randn(num, 1)
    both = z + 0.5 * torch.randn(num, 3)
    both[:, 1:][torch.rand(num, 2) < 0.4] = math.nan  # the first entry of x is always there
    seen = (~both.isnan()).float()
    log_evidence = torch.stack([_observed_part(row) for row in both])
    loc, scale = posterior(both[:, :2].nan_to_num(), both[:, 2].nan_to_num(), seen[:, :2], seen[:, 2])
    return Exact(
        Pair(model, guide, missing="nan"),
        {"x": both[:, :2], "y": both[:, 2]},
        log_evidence,
        {"z": (loc, scale)},
        simulate=lambda num: {
            "mask": (torch.arange(num)[:, None] + torch.arange(2)) % 3 > 0,
            "y_mask": torch.arange(num) % 2 == 0,
        },
    )


def _observed_part(row: Tensor) -> Tensor:
    seen = row[~row.isnan()]
    covariance = torch.ones(len(seen), len(seen)) + 0.25 * torch.eye(len(seen))
    return torch.distributions.MultivariateNormal(torch.zeros(len(seen)), covariance).log_prob(seen)


EXACT = [
    two_observed,
    other_names,
    two_levels,
    mixture,
    components_alone,
    guide_enumerates,
    words,
    shared_mean,
    closures,
    scaled,
    sequences,
    conditional,
    half_observed,
]
LOCAL = [make for make in EXACT if make is not shared_mean]


def wrong(exact: Exact) -> Pair:
    """The pair with a guide whose draws are half as far from the middle as they should be, at the same sites."""

    class Narrow(poutine.messenger.Messenger):
        def _pyro_sample(self, msg):
            fn = msg["fn"]
            if not msg["is_observed"] and fn.has_rsample and not isinstance(fn, dist.MixtureSameFamily):
                base = fn.base_dist if isinstance(fn, torch.distributions.Independent) else fn
                if isinstance(base, torch.distributions.Normal):
                    narrow = dist.Normal(base.loc, 0.5 * base.scale)
                    msg["fn"] = narrow.to_event(fn.event_dim) if fn.event_dim else narrow

    return Pair(exact.pair.model, Narrow()(exact.pair.guide), missing=exact.pair.missing)
