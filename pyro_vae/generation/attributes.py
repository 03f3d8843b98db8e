"""Arithmetic with attributes: the direction that adds one, and rows moved along it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_vae.data.rows import Inputs
from pyro_vae.inference.batch import rows_of, with_rows
from pyro_vae.pair import Pair

__all__ = ["attribute_direction", "moved_along"]


def attribute_direction(pair: Pair, x: Inputs, has_attribute: Tensor, *, site: str | None = None) -> Tensor:
    r"""The mean code of rows with an attribute, minus that of rows without: ``(L,)``.

    Args:
        pair: A trained :class:`~pyro_vae.VAE` or any :class:`~pyro_vae.Pair` with a continuous latent for each row.
        x: Rows.
        has_attribute: Whether each row has the attribute, ``(N,)``.
        site: Name of the latent; by default the only one, or ``"z"``.

    Returns:
        The direction; for a latent with several dimensions, or in plates within a row, one vector of all its entries.

    Raises:
        ContractError: if the latent is discrete or belongs to all rows.
        ValueError: if no row has the attribute, or all do.

    Example:
        >>> from pyro_vae import mlp_vae
        >>> from pyro_vae.likelihoods import Normal
        >>> vae, x = mlp_vae((3,), latent_dim=2, likelihood=Normal()), torch.randn(50, 3)
        >>> direction = attribute_direction(vae, x, x[:, 0] > 0)
        >>> direction.shape, moved_along(vae, x[:5], direction, [-1, 0, 1]).shape
        (torch.Size([2]), torch.Size([3, 5, 3]))

    Source: Radford et al., *Unsupervised Representation Learning with Deep Convolutional GANs*, 2016; White, *Sampling
    Generative Networks*, 2016.
    """
    codes, start = [], 0
    has = torch.as_tensor(has_attribute).bool()
    for batch in pair.batches(x):
        structure = pair.structure(batch)
        name = structure.continuous_site(site)
        codes.append(rows_of(pair.middle(batch, structure)[name], structure.latents[name].event_dim))
        start += len(batch)
    if has.shape != (start,) or not 0 < int(has.sum()) < start:
        raise ValueError(
            f"has_attribute must be true or false for each of the {start} rows, with both among them; found "
            f"{int(has.sum())} true in shape {tuple(has.shape)}"
        )
    found, has = torch.cat(codes), has.to(codes[0].device)
    return found[has].mean(0) - found[~has].mean(0)


def moved_along(
    pair: Pair, x: Inputs, direction: Tensor, strengths: Sequence[float] | Tensor = (1.0,), *, site: str | None = None
) -> Tensor:
    r"""Means :math:`E[x' \mid z + a\,d]` at the codes of rows moved by strengths a along a direction: ``(A, N, *E)``.

    Args:
        pair: A trained :class:`~pyro_vae.VAE` or any :class:`~pyro_vae.Pair` with a continuous latent for each row.
        x: Rows. Their codes are the middle of :math:`q(z \mid x)`; other latents stay the same.
        direction: ``(L,)``, from :func:`attribute_direction`.
        strengths: How far to move, A values.
        site: Name of the latent; by default the only one, or ``"z"``.
    """
    batch = pair.batch(x)
    structure = pair.structure(batch)
    name, middle = structure.continuous_site(site), pair.middle(batch, structure)
    event_dim, shape = structure.latents[name].event_dim, middle[name].shape
    code = rows_of(middle[name], event_dim)
    if direction.shape != code.shape[1:]:
        raise ValueError(
            f"the direction has shape {tuple(direction.shape)}, expected that of a code, {tuple(code.shape[1:])}"
        )
    moved = []
    for a in torch.as_tensor(strengths).tolist():
        there = with_rows(code + a * direction.to(code), shape, event_dim)
        moved.append(pair.mean_at({**middle, name: there}, given=batch.forward))
    return torch.stack(moved)
