r"""How well a model can describe a row with a given number of nats: the curve of rate and distortion over β."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from pyro_vae.data.rows import Inputs
from pyro_vae.evaluation.summary import evaluate
from pyro_vae.inference.objectives import Elbo, as_objective
from pyro_vae.pair import Pair
from pyro_vae.programs.running import forked_random_state
from pyro_vae.training.fit import fit

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["rate_distortion_curve"]


def rate_distortion_curve(
    make_pair: Callable[[], Pair],
    x_train: Inputs,
    x_test: Inputs,
    betas: Sequence[float] = (0.25, 0.5, 1.0, 2.0, 4.0),
    fit_arguments: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
) -> "pd.DataFrame":
    r"""Trains one model for each β and measures its rate and distortion on rows that it was not trained on.

    With β as the weight of the KL, training minimises :math:`D + \beta R`, with the rate
    :math:`R = \mathrm{E}\,\mathrm{KL}(q(z \mid x) \,\|\, p(z))` and the distortion
    :math:`D = -\mathrm{E}_q \log p(x \mid z)`, so :math:`-\beta` is the slope of the curve of the best D for
    each R. Models with the same :math:`D + R` have the same ELBO, and β = 1 has the best one. Along the curve, z tells
    more or less about a row, and the likelihood the rest.

    Args:
        make_pair: Makes a new, untrained pair; called once for each β, from the same random state.
        x_train: Rows to train on, as :func:`~pyro_vae.fit` takes them.
        x_test: Rows to measure on, as :func:`~pyro_vae.fit` takes them.
        betas: Weights of the KL, at least 0.
        fit_arguments: Further arguments of :func:`~pyro_vae.fit`. Its ``objective`` must be an
            :class:`~pyro_vae.Elbo`, by default ``Elbo()``, whose ``kl_weight`` becomes β.
        seed: Seeds ``make_pair``, training and measurement.

    Returns:
        A table with one row for each β, in the order given: ``beta`` and what :func:`~pyro_vae.evaluate` returns,
        ``rate``, ``distortion``, ``elbo`` and their standard errors in nats per datum, ``active_units``.

    Raises:
        ValueError: if ``betas`` is empty, or a β is negative.
        TypeError: if the objective is not an ``Elbo``.

    Example:
        >>> from pyro_vae import mlp_vae
        >>> from pyro_vae.likelihoods import Normal
        >>> x = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
        >>> make = lambda: mlp_vae((2,), 1, hidden_dims=(), likelihood=Normal(scale=0.5))
        >>> curve = rate_distortion_curve(make, x, x, betas=(0.1, 5.0), fit_arguments={"progress": False, "epochs": 30})
        >>> bool(curve["rate"][0] > curve["rate"][1]), bool(curve["distortion"][0] < curve["distortion"][1])
        (True, True)

    Source: Alemi et al., *Fixing a Broken ELBO*, 2018; Higgins et al., *beta-VAE*, 2017.
    """
    import pandas as pd

    betas = [float(beta) for beta in betas]
    if not betas or not min(betas) >= 0:
        raise ValueError(f"betas must be one or more numbers, at least 0; found {betas}")
    arguments = {"seed": seed, **(fit_arguments or {})}
    objective = as_objective(arguments.pop("objective", None) or Elbo())
    if not isinstance(objective, Elbo):
        raise TypeError(f"the objective must be an Elbo, so that its KL can have the weight β; found {objective!r}")
    records = []
    for beta in betas:
        with forked_random_state(torch.device("cpu")):
            torch.manual_seed(seed)
            pair = make_pair()
        fit(pair, x_train, objective=replace(objective, kl_weight=beta), **arguments)
        records.append({"beta": beta, **evaluate(pair, x_test, seed=seed)})
    return pd.DataFrame(records)
