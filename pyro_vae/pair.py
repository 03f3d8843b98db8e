r"""A pair of Pyro programs, :math:`p(x, z)` and :math:`q(z \mid x)`: sampling, encoding, reconstruction, imputation."""

import copy
import itertools
import math
import os
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_vae._support.arrays import as_tensor
from pyro_vae._support.memory import check_memory, keep_freed_memory
from pyro_vae._support.precision import Rounding, arithmetic, floating
from pyro_vae._support.ranges import Constraint, discrete, elementwise, inner_value, of_all_rows
from pyro_vae.data.checks import check_columns, check_digits, check_rows, observed
from pyro_vae.data.rows import Inputs, Rows, as_rows
from pyro_vae.inference import predictive
from pyro_vae.inference.batch import Batch
from pyro_vae.inference.imputation import draw_imputations, rows_at_once, seen_by_obs_mask
from pyro_vae.inference.inspection import inspect_pair
from pyro_vae.inference.placed import placed
from pyro_vae.inference.posterior import posterior_at
from pyro_vae.inference.sites import Draws, run_pair
from pyro_vae.inference.structure import (
    PROGRAM_ERRORS,
    ContractError,
    Structure,
    first_line,
    is_local,
    sample_sites,
)
from pyro_vae.programs.arguments import accepted, arguments_for, check_arguments, check_mask, check_values
from pyro_vae.programs.ownership import Owned
from pyro_vae.programs.running import evaluating, forked_random_state, in_mode, move_stored, site_distribution
from pyro_vae.programs.saving import argument_shapes, save_pair
from pyro_vae.transforms import Identity, Transform

__all__ = ["Batch", "Pair"]

File = str | os.PathLike[str]
Given = Mapping[str, Any]

_ROWS = 1024  # converted to the model's units at a time


class Pair(nn.Module):
    r"""A model :math:`p(x, z)` and a guide :math:`q(z \mid x)`, both Pyro programs, and the data's transform.

    Training, prediction and evaluation need nothing else. The programs may be modules, methods, functions, partial
    functions or other callables. The modules that they use are found and registered with the pair, so its parameters,
    device, mode and state include theirs. The contract is at the top of :mod:`pyro_vae.programs`;
    :func:`pyro_vae.check_pair` checks whether a pair keeps it.

    Args:
        model: ``model(x=None, *, batch_size=None, ...)``.
        guide: ``guide(x, ...)``.
        transform: From the user's units to the model's; by default the data are in the model's units.
        event_shape: Shape of one row, to check data against; by default that of a row drawn from the model.
        data_range: Constraint on one element in the model's units, to check data against; by default the support of
            the distribution at site ``"x"``.
        missing: ``"nan"`` if NaN in the data is a missing entry. The programs then get ``mask``, ``(N, *E)``, true
            where an entry is observed, and each NaN is replaced with a value that fits the model. The same holds for
            another argument ``y`` if the programs take ``y_mask``. By default NaN is an error. A mask may also be
            passed, like any other argument.

    Every method takes its rows as :func:`~pyro_vae.fit` does: a tensor or array ``(N, *E)`` in the user's units, a
    DataFrame, a memory map, a data set, or a mapping of ``"x"`` and the programs' keyword arguments. These have one
    entry for each row, or are the same for all rows: None, a number, a tensor without dimensions. Each program gets
    those that it takes; one that neither takes is a ``TypeError``. Results are in the user's units too.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x=None, *, batch_size=None):
        ...     with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
        ...         z = pyro.sample("z", dist.Normal(0, 1).expand([2]).to_event(1))
        ...         return pyro.sample("x", dist.Normal(z, 0.1).to_event(1), obs=x)
        >>> def guide(x):
        ...     scale = pyro.param("scale", torch.ones(2), constraint=dist.constraints.positive)
        ...     with pyro.plate("data", len(x), dim=-1):
        ...         pyro.sample("z", dist.Normal(x, scale).to_event(1))
        >>> Pair(model, guide).sample(5).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        *,
        transform: Transform | None = None,
        event_shape: Sequence[int] | None = None,
        data_range: Constraint | None = None,
        missing: Literal["nan"] | None = None,
    ) -> None:
        super().__init__()
        if missing not in (None, "nan"):
            raise ValueError(f"missing must be 'nan' or None, found {missing!r}")
        keep_freed_memory()
        self.missing = missing
        self.model, self.guide = model, guide
        self.transform = Identity() if transform is None else transform
        self.event_shape = None if event_shape is None else tuple(event_shape)
        self.data_range = data_range
        self._place = torch.empty(0)
        self.num_rows: int | None = None  # rows that it was trained on, which share a global latent
        self.store_names: set[str] = set()  # its entries in Pyro's parameter store, if known
        self.argument_shapes: dict[str, Any] = {}  # with them the programs can run without data
        owned = Owned(model=model, guide=guide)  # modules and parameters that the programs keep elsewhere
        if next(owned.children(), None) is not None or next(owned.parameters(), None) is not None:
            self.owned = owned

    def __deepcopy__(self, memo: dict[int, Any]) -> "Pair":
        if hasattr(self, "owned"):
            for program in (self.model, self.guide):
                if not isinstance(program, (nn.Module, types.MethodType)):
                    raise TypeError(
                        f"{getattr(program, '__name__', program)!r} is a function, which a copy would share with its "
                        f"modules: build the pair again, or write the programs as modules"
                    )
        clone = type(self).__new__(type(self))
        memo[id(self)] = clone
        clone.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return clone

    @property
    def programs(self) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """Model and guide, each of which ignores the keyword arguments that only the other takes.

        On a device other than the CPU, tensors that they create are created there (:mod:`pyro_vae.inference.placed`).
        """
        return placed(_taking(self.model), "model", self.device), placed(_taking(self.guide), "guide", self.device)

    @property
    def has_met_gaps(self) -> bool:
        """Whether the programs are made for rows with missing entries; assumed here, known for a VAE."""
        return True

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the programs' parameters."""
        return next((p.dtype for p in self.parameters() if p.is_floating_point()), torch.get_default_dtype())

    @property
    def device(self) -> torch.device:
        """Device of the programs' parameters; without parameters, the device that the pair was moved to."""
        return next((p.device for p in self.parameters()), self._place.device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Pair":  # noqa: FBT001, FBT002
        """Moves the modules, and the pair's own entries in Pyro's parameter store."""
        super()._apply(fn, recurse)
        self._place = fn(self._place)
        move_stored(self.store_names, self.device)
        return self

    def save(self, folder: File, run: Mapping[str, Any] | None = None) -> None:
        """Writes the pair's state to a folder, completely or not at all: ``config.json`` and ``model.safetensors``.

        The files hold weights, buffers, the pair's own entries in Pyro's parameter store, and the transform. The
        programs are code and are not saved: ``load(folder, into=pair)`` loads the state into a pair of the same
        programs.

        Args:
            folder: Created if it does not exist; the two files in it are replaced.
            run: JSON data to save along with it, such as where and how it was trained.

        Raises:
            ValueError: if something cannot be saved, before anything is written.
        """
        save_pair(self, folder, run)

    # Checking and preparing rows

    def check(
        self, x: Inputs, name: str = "x", *, training: bool = False, num_workers: int = 2, fingerprint: bool = False
    ) -> Rows:
        """Checks that every entry fits the model, and returns the rows.

        Args:
            x: Rows in any of the forms above.
            name: What to call them in messages.
            training: Raise an error for elements that no row observes, and for those with values that the model's
                type cannot tell apart, because a model cannot learn about them.
            num_workers: Number of processes that read streamed data.
            fingerprint: Take the rows' fingerprint in the same pass.

        Raises:
            ValueError: for the first problem, with what was found, what was expected and what to do.
            TypeError: if a keyword argument is one that neither program takes.
        """
        rows = as_rows(x, self.device, num_workers=num_workers, name=name)
        if rows.num_rows == 0:
            raise ValueError(f"{name} has no rows; expected at least one")
        size = rows.rows_at_once()
        rows.num_observed, somewhere, rounding = 0, None, Rounding(self.dtype)
        for chunk, first in rows.numbered(size, fingerprint=fingerprint):
            if first == 0:
                arguments = {key: value for key, value in chunk.items() if key != "x"}
                check_arguments(self.model, self.guide, arguments)
                self.argument_shapes = argument_shapes(arguments)
            called = f"{name}[{first}:{min(first + size, rows.num_rows)}]" if size < rows.num_rows else name
            here = self._checked(chunk, called, rounding if training else None)
            seen = self._seen(here, chunk)
            if seen is not None and not bool(seen.all()):
                check_mask(self.model)
            rows.num_observed += here.numel() if seen is None else int(seen.sum())
            if seen is not None:
                somewhere = seen.any(0) if somewhere is None else somewhere | seen.any(0)
        if training:
            check_columns(somewhere, self.data_range, name)
            check_digits(rounding, self.data_range, name)
        return rows

    def _checked(self, chunk: Mapping[str, Any], name: str, rounding: Rounding | None) -> Tensor:
        x = arithmetic(chunk["x"])
        self._check_arguments(chunk)
        if self.event_shape is None or self.data_range is None:
            self._learn_range({key: value for key, value in chunk.items() if key != "x"})
        check_rows(
            x,
            event_shape=self.event_shape,
            data_range=self.data_range,
            transform=self.transform,
            mask=self._mask(x, chunk),
            missing=self.missing is not None,
            may_be_empty=any(self._may_have_gaps(key, {}) for key in chunk if key != "x"),
            dtype=self.dtype,
            device=self.device,
            name=name,
            rounding=rounding,
        )
        return x

    def _check_arguments(self, chunk: Mapping[str, Any]) -> None:
        check_values((self.model, self.guide), {name: value for name, value in chunk.items() if name != "x"})
        floating = {n: v for n, v in chunk.items() if n != "x" and isinstance(v, Tensor) and v.is_floating_point()}
        for name, value in floating.items():
            if not self._may_have_gaps(name, chunk) and bool(value.isnan().any()):
                raise ValueError(
                    f"{name} has {int(value.isnan().sum())} NaN: fill them, or set missing='nan' and let the programs "
                    f"take {name}_mask"
                )

    def _may_have_gaps(self, name: str, chunk: Mapping[str, Any]) -> bool:
        """Whether NaN in an argument is a missing entry: the model takes its mask, or the guide if only it takes it."""
        mask = f"{name}_mask"
        by_model, by_guide = (accepted(program) or set() for program in (self.model, self.guide))
        taken = mask in (by_model if name in by_model else by_guide)
        return self.missing is not None and mask not in chunk and taken

    def _learn_range(self, arguments: Mapping[str, Any]) -> None:
        """Finds the shape and support of a row by drawing one, if the model can."""
        try:
            site = self._any_row(arguments)
        except PROGRAM_ERRORS:
            return
        if self.event_shape is None:
            self.event_shape = tuple(predictive.rows_first(site, site["value"]).shape[1:])
        if self.data_range is None:
            try:
                may_vary = any(np.ndim(value) > 0 for value in arguments.values())  # with each row's arguments
                self.data_range = of_all_rows(elementwise(site["fn"].support), may_vary=may_vary)
            except NotImplementedError:
                return

    def _any_row(self, arguments: Mapping[str, Any]) -> Any:
        """The site ``"x"`` of a model that draws two rows."""
        batch = Batch.of(torch.zeros(1, 0), self._to_device(arguments))
        two = batch[torch.zeros(2, dtype=torch.long)] if batch.context else batch
        with forked_random_state(self.device), evaluating(self.model):
            trace = poutine.trace(self.programs[0]).get_trace(batch_size=2, **two.forward)
        predictive.check_sites(trace.nodes, ("x",))
        site = trace.nodes["x"]
        if not any(frame.name == "data" and (frame.dim, frame.size) == (-1, 2) for frame in site["cond_indep_stack"]):
            raise ValueError("the plate 'data' is not that of the rows; inspecting the pair says more")
        return site

    def _to_device(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        given = {}
        for name, value in arguments.items():
            is_array = isinstance(value, (Tensor, np.ndarray, list, tuple)) or hasattr(value, "to_numpy")
            given[name] = as_tensor(value).to(self.device) if is_array else value
        return given

    def _mask(self, x: Tensor, arguments: Mapping[str, Any]) -> Tensor | None:
        """The mask of entries, if there is one; a mask of another shape is left to the programs.

        A model in which entries may not exist, such as steps after the end of a row, has a method
        ``observed_entries(x, **arguments)`` that returns a mask of those that do.
        """
        look: Any = getattr(self.model, "observed_entries", None)
        mask = arguments.get("mask")
        mask = None if mask is None else torch.as_tensor(mask, device=x.device)
        known: Any = look(x, **arguments_for(self.model, arguments)) if callable(look) else None
        if known is not None:
            known = known.to(x.device)
            mask = known if mask is None else mask.bool() & known
        if mask is not None and mask.shape != x.shape:
            if self.missing is None:
                return None
            raise ValueError(
                f"the mask has shape {tuple(mask.shape)}; with missing='nan' the mask needs a value for each entry of "
                f"x, {tuple(x.shape)}: pass a mask of that shape, or rename the argument if it means something else"
            )
        return None if mask is None else mask.bool()

    def _seen(self, x: Tensor, arguments: Mapping[str, Any]) -> Tensor | None:
        return observed(x, self._mask(x, arguments), missing=self.missing is not None)

    def prepare(self, rows: Mapping[str, Any] | Inputs, *, redraw: bool = False) -> Batch:
        """Converts rows to a batch for the programs, without checking them.

        Args:
            rows: A mapping of ``"x"`` and the keyword arguments, as :class:`~pyro_vae.data.rows.Rows` yields, or rows
                alone.
            redraw: Let a random transform, such as :class:`~pyro_vae.transforms.Binarize`, draw again, as in training.
                By default its noise depends on the row alone, so every tool sees the same row.

        Returns:
            The rows in the model's units, on its device and in its type, with a ``mask`` among their arguments if
            entries are missing, and the transform's log-Jacobian.
        """
        named = dict(rows) if isinstance(rows, Mapping) else next(as_rows(rows, self.device).chunks(2**62))
        x = as_tensor(named.pop("x"))
        arguments = self._with_gaps(self._to_device(named))
        x = floating(x.to(self.device), self.dtype)
        mask = self._seen(x, arguments)
        if mask is not None:
            arguments["mask"] = mask
            x = torch.where(mask, x, self._filling(self.transform.domain))
        with in_mode([*self.transform.modules()], training=redraw):
            y, log_jacobian = self.transform.with_log_jacobian(x)
        y = y.to(self.dtype)
        has_mass = False if self.data_range is None else discrete(self.data_range)
        if mask is not None and self.data_range is not None:
            y = torch.where(mask, y, self._filling(self.data_range))
        if has_mass is True:
            log_jacobian = y.new_zeros(y.shape[0], dtype=self.dtype)
        else:
            has_density = ~torch.as_tensor(has_mass, device=y.device)
            counted = has_density if mask is None else mask & has_density
            log_jacobian = torch.where(counted, log_jacobian, 0.0).reshape(y.shape[0], -1).sum(-1).to(self.dtype)
        batch = Batch.of(y, arguments)
        return Batch(y, batch.context, log_jacobian, batch.constants)

    def _with_gaps(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The arguments, with a mask, and a value in place of each NaN, if the programs take such a mask."""
        for name, value in list(arguments.items()):
            floating = isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 0
            if floating and self._may_have_gaps(name, arguments):
                seen = ~value.isnan()
                occurs = torch.where(seen, value, -math.inf).amax()  # one of the observed values, if there is any
                arguments[name] = torch.where(seen, value, torch.where(occurs.isfinite(), occurs, 0.0))
                arguments[f"{name}_mask"] = seen
        return arguments

    def _filling(self, constraint: Constraint) -> Tensor:
        return torch.as_tensor(inner_value(elementwise(constraint)), dtype=self.dtype, device=self.device)

    def batches(self, x: Inputs, size: int = _ROWS) -> Iterator[Batch]:
        """All rows in order, checked and converted to the model's units ``size`` at a time."""
        for chunk in self.check(x).chunks(size):
            yield self.prepare(chunk)

    def batch(self, x: Inputs) -> Batch:
        """All rows at once, checked and in the model's units."""
        return self.prepare(next(self.check(x).chunks(2**62)))

    def structure(self, batch: Batch, *, count_bytes: bool = False) -> Structure:
        """The sites of the programs, see :func:`~pyro_vae.inference.inspection.inspect_pair`."""
        with forked_random_state(self.device):
            return inspect_pair(*self.programs, batch, count_bytes=count_bytes)

    def draws(self, batch: Batch, structure: Structure | None = None, **options: Any) -> Draws:
        """Draws from the guide for a batch, with the log-probability at every site, without gradients.

        Args:
            batch: N rows.
            structure: The sites of the programs, if they are known.
            options: Of :func:`~pyro_vae.inference.sites.run_pair`; a global latent is shared among ``num_rows`` rows.
        """
        structure = self.structure(batch) if structure is None else structure
        with evaluating(self.model, self.guide):
            return run_pair(*self.programs, batch, structure, **{"num_rows": self.num_rows, **options})

    # Latents

    def encode(self, x: Inputs, *, site: str | None = None) -> TorchDistribution:
        r"""The approximate posterior of each row's latents: batch ``(N,)``, event ``(L,)``.

        Without gradients; if you need them, call the guide's own parts.

        Args:
            x: Rows.
            site: Name of the latent; by default the only one, or ``"z"``.

        Returns:
            The guide's distribution at that site, given the middle of the latents that it draws before. For a latent
            that the model enumerates it is the posterior :math:`p(k \mid x)`, averaged over draws from the guide if
            there are other latents. For one that the guide computes from other draws, as an autoguide does, it is an
            :class:`~pyro.distributions.Empirical` distribution of 1,000 draws.
        """
        batch = self.batch(x)
        structure = self.structure(batch)
        name = structure.site(site)
        with forked_random_state(self.device):
            torch.manual_seed(0)
            return posterior_at(*self.programs, batch, structure, name)

    def decode(self, z: Tensor | Mapping[str, Tensor], *, given: Given | None = None) -> TorchDistribution:
        r"""The likelihood :math:`p(x \mid z)` at latents ``(N, L)``, in the model's units: batch ``(N,)``, event ``E``.

        Without gradients; if you need them, call the model's own parts.

        Args:
            z: Values of the only latent, or of each by name.
            given: Keyword arguments of the model.
        """
        latents, rows = self._latents(z, given)
        program = poutine.condition(self.programs[0], latents)
        with evaluating(self.model):
            return site_distribution(program, "x", batch_size=rows, **self._given(given, rows).forward)

    def mean_at(self, z: Tensor | Mapping[str, Tensor], *, given: Given | None = None) -> Tensor:
        r"""The mean :math:`E[x \mid z]` at latents ``(N, L)``: ``(N, *E)``.

        It is the transform's inverse, applied to the likelihood's mean; this is exact if the inverse is affine.

        Args:
            z: Values of the only latent, or of each by name.
            given: Keyword arguments of the model.
        """
        latents, rows = self._latents(z, given)
        return self._at(latents, rows, self._given(given, rows).forward, mean=True)

    def sample_at(self, z: Tensor | Mapping[str, Tensor], *, given: Given | None = None) -> Tensor:
        r"""Draws :math:`x \sim p(x \mid z)` at latents ``(N, L)``, one for each: ``(N, *E)``.

        Args:
            z: Values of the only latent, or of each by name.
            given: Keyword arguments of the model.
        """
        latents, rows = self._latents(z, given)
        return self._at(latents, rows, self._given(given, rows).forward, mean=False)

    def _at(
        self, latents: Mapping[str, Tensor], rows: int, arguments: Mapping[str, Any], *, mean: bool = True
    ) -> Tensor:
        stacked = {name: value[None] for name, value in latents.items()}
        with evaluating(self.model):
            found = predictive.predict_from_latents(self.programs[0], stacked, rows, mean=mean, arguments=arguments)
        return self.transform.inverse(found["x"][0])

    def _given(self, given: Given | None, rows: int) -> Batch:
        """Keyword arguments of a run without data, with this many rows each."""
        given = self._to_device(given or {})
        check_arguments(self.model, self.guide, given.keys())
        batch = Batch.of(torch.zeros(rows, 0, dtype=self.dtype, device=self.device), given)
        for name, value in batch.context.items():
            if len(value) != rows:
                raise ValueError(
                    f"given[{name!r}] has {len(value)} rows: give one for each of the {rows} that are drawn"
                )
        self._check_arguments(given)
        return batch

    def _latents(self, z: Tensor | Mapping[str, Tensor], given: Given | None) -> tuple[dict[str, Tensor], int]:
        """Values of every latent of the model, and the number of rows."""
        values = dict(z) if isinstance(z, Mapping) else {"": z}
        values = {name: as_tensor(value).to(self.device) for name, value in values.items()}
        values = {n: v.to(self.dtype) if v.is_floating_point() else v for n, v in values.items()}
        given = self._to_device(given or {})
        by_row = [value for value in given.values() if isinstance(value, Tensor) and value.dim() > 0]
        arguments = self._given(given, len(by_row[0]) if by_row else 1)
        with forked_random_state(self.device), evaluating(self.model):
            sites = sample_sites(predictive.forward_trace(self.programs[0], len(arguments), arguments.forward))
        held = accepted(self.model) or set()
        names = [n for n, site in sites.items() if n != "x" and n not in held and not site["is_observed"]]
        local = [name for name in names if is_local(sites[name])]
        if "" in values:
            if len(local) != 1:
                raise ValueError(
                    f"the model has {len(local)} latents of each row, {', '.join(local) or 'none'}: give the value of "
                    f"each by name, such as {{{(local or ['z'])[0]!r}: z}}"
                )
            values = {local[0]: values[""]}
        if missing := [name for name in local if name not in values]:
            raise ValueError(f"the latent {missing[0]!r} has no value: give one for each of {', '.join(local)}")
        if unknown := [name for name in values if name not in names]:
            raise ValueError(f"the model has no latent {unknown[0]!r}: its latents are {', '.join(names) or 'none'}")
        rows = len(arguments)
        if local:
            event_dim = sites[local[0]]["fn"].event_dim
            shape = values[local[0]].shape
            if len(shape) <= event_dim:
                raise ValueError(f"{local[0]!r} has shape {tuple(shape)}: give a value for each row, (N, ...)")
            rows = shape[-1 - event_dim]
        own = self._given(given, rows).forward
        others = [name for name in names if name not in values]
        if others:
            values |= {n: v[0] for n, v in self._global_latents(others, 1, own, middle=True).items()}
        return values, rows

    def _global_latents(
        self, names: Sequence[str], num: int, arguments: Mapping[str, Any], *, middle: bool = False
    ) -> dict[str, Tensor]:
        """Values of global latents from the guide, ``(num, *event)`` each; the guide must not need rows for them."""
        model, guide = self.programs
        program = predictive.at_centre(guide) if middle else guide
        taken = accepted(self.guide) or set()
        with evaluating(self.model, self.guide):
            two = Batch.of(torch.zeros(1, 0), arguments)[torch.zeros(2, dtype=torch.long)]

            seeds = itertools.count()

            def drawn() -> dict[str, Tensor]:
                """Latents from the guide, run on rows drawn from the model."""
                with forked_random_state(self.device):  # does not advance the guide's noise
                    torch.manual_seed(next(seeds))
                    trace = predictive.forward_trace(model, 2, two.forward)
                predictive.check_sites(trace.nodes, ("x",))
                local = {n: site for n, site in sample_sites(trace).items() if is_local(site)}
                values = {n: predictive.rows_first(site, site["value"]) for n, site in local.items()}
                rows = values.pop("x")
                observed = {n: value for n, value in values.items() if n in taken and n not in two.arguments}
                try:
                    sites = sample_sites(poutine.trace(program).get_trace(rows, **{**two.arguments, **observed}))
                except PROGRAM_ERRORS as error:
                    raise ContractError(
                        f"the guide, which draws the global latent {names[0]!r}, fails on {len(rows)} rows drawn from "
                        f"the model ({first_line(error)}): draw it from its prior with sample(prior=True)"
                    ) from error
                if missing := [name for name in names if name not in sites]:
                    raise ContractError(
                        f"the guide does not sample the global latent {missing[0]!r}, so nothing was learned about it: "
                        f"draw it from its prior with sample(prior=True)"
                    )
                return {name: sites[name]["value"] for name in names}

            with forked_random_state(self.device):
                torch.manual_seed(0)
                here = drawn()
                torch.manual_seed(0)
                there = drawn()  # the same noise on other rows
            for name in names:
                if not torch.allclose(here[name], there[name], rtol=1e-4, atol=1e-6, equal_nan=True):
                    raise ValueError(
                        f"the guide's {name!r} depends on the guide's rows, so it has no value without rows: use "
                        f"posterior_predictive, or sample(prior=True)"
                    )
            found = [drawn() for _ in range(num)]
        return {name: torch.stack([values[name] for values in found]) for name in names}

    # Draws

    def sample(
        self,
        num_samples: int,
        *,
        given: Given | None = None,
        prior: bool = False,
        temperature: float = 1.0,
        sites: Sequence[str] | None = None,
        mean: bool = False,
        out: File | None = None,
        progress: bool = False,
    ) -> Any:
        r"""Draws new rows :math:`x \sim p(x)`, ``(num_samples, *E)``.

        Args:
            num_samples: Number of rows.
            given: Keyword arguments of the model, with ``num_samples`` rows each if they have rows:
                ``given={"labels": torch.full((16,), 3)}``.
            prior: Draw latents outside the plate ``"data"`` from their prior. By default they come from the guide,
                as learned. They are drawn again for every thousand rows or so.
            temperature: Factor of the standard deviations of a row's latents, each given those before it. They must
                be normal. Below 1, rows are more alike and closer to the middle of the data; only at 1 are they draws
                from the model.
            sites: Names of the sites to draw, if not ``"x"`` alone.
            mean: Return :math:`E[x \mid z]` at :math:`z \sim p(z)` instead: smoother, but not draws from the model.
            out: A ``.npy`` file to write the same rows to, some megabytes at a time. It appears once it is complete,
                and is returned memory-mapped and read-only.
            progress: Show a progress bar.

        Returns:
            The rows; with ``sites``, a mapping from each site to its draws.

        Raises:
            ValueError: if ``num_samples`` is below 1, the model has no such site, the file cannot be written, or
                ``temperature`` is not 1 and a latent of a row is not normal.
        """
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, found {num_samples}")
        batch = self._given(given, num_samples)
        named = _sites(sites, out)
        first, model = batch[:1].forward, self.programs[0]
        if temperature != 1:
            model = predictive.Tempered(temperature, {"x", *(accepted(self.model) or ())})(model)
        with forked_random_state(self.device), evaluating(self.model):
            trace = predictive.forward_trace(model, 1, first)
        elements = (
            math.prod(self.event_shape)
            if self.event_shape
            else trace.nodes.get("x", {"value": torch.ones(1)})["value"].numel()
        )
        if out is None:
            check_memory(
                num_samples * elements * self.dtype.itemsize,
                f"{num_samples:,} draws",
                "draw fewer, or write them to a file as they are drawn, with out='draws.npy'",
            )
        wanted = [
            n for n, s in sample_sites(trace).items() if not is_local(s) and n not in named and not s["is_observed"]
        ]
        drawn = predictive.draw_prior_predictive(
            model,
            num_samples,
            mean=mean,
            arguments=batch.forward,
            latents=None if prior or not wanted else lambda runs: self._global_latents(wanted, runs, first),
            finish=self.transform.inverse,
            shape=predictive.chunk_shape(elements, at_most=predictive.most_rows(trace), device=self.device),
            sites=named,
            out=out,
            progress=progress,
        )
        return drawn if sites is not None or out is not None else drawn["x"]

    def posterior_predictive(
        self,
        x: Inputs,
        num_samples: int = 1,
        *,
        sites: Sequence[str] | None = None,
        mean: bool = False,
        out: File | None = None,
        progress: bool = False,
    ) -> Any:
        r"""Draws new data like each row, :math:`z \sim q(z \mid x),\ x' \sim p(x \mid z)`: ``(num_samples, N, *E)``.

        Args:
            x: Rows.
            num_samples: Draws for each row.
            sites: Names of the sites to draw, if not ``"x"`` alone. The arguments that hold their values are not
                passed to the model.
            mean: Return :math:`E[x' \mid z]` for each draw of z instead.
            out: A ``.npy`` file to write the same draws to, some megabytes at a time, as in :meth:`sample`.
            progress: Show a progress bar.

        Returns:
            The draws; with ``sites``, a mapping from each site to its draws.

        Raises:
            ValueError: if rows or arguments do not fit the model, or the file cannot be written.
        """
        rows, named = self.check(x), _sites(sites, out)
        structure = self.structure(self.prepare(next(rows.chunks(_ROWS))))
        if out is None:
            check_memory(
                num_samples * rows.num_rows * rows.num_elements * self.dtype.itemsize,
                f"{num_samples:,} draws for each of {rows.num_rows:,} rows",
                "draw fewer, or write them to a file as they are drawn, with out='draws.npy'",
            )
        drawn = predictive.draw_posterior_predictive(
            *self.programs,
            (self.prepare(chunk) for chunk in rows.chunks(_ROWS)),
            rows.num_rows,
            num_samples,
            structure,
            mean=mean,
            finish=self.transform.inverse,
            sites=named,
            elements=rows.num_elements,
            device=self.device,
            out=out,
            progress=progress,
        )
        return drawn if sites is not None or out is not None else drawn["x"]

    def reconstruct(self, x: Inputs) -> Tensor:
        r"""The mean :math:`E[x' \mid z]` at the middle of :math:`q(z \mid x)`, one for each row: ``(N, *E)``.

        Every latent is taken from the guide: its mean, given those before it, or its most probable value if it is
        discrete. Latents that the model enumerates take their most probable values.
        """
        parts = []
        structure: Structure | None = None
        for batch in self.batches(x):
            structure = self.structure(batch) if structure is None else structure
            parts.append(self._at(self.middle(batch, structure), len(batch), batch.forward))
        return torch.cat(parts)

    def middle(self, batch: Batch, structure: Structure | None = None) -> dict[str, Tensor]:
        r"""The middle of :math:`q(z \mid x)` for every latent by name, as in :meth:`reconstruct`.

        Args:
            batch: N rows.
            structure: The sites of the programs, if they are known.

        Returns:
            By site ``(*plates, N, *event)``; ``event`` if it is global.
        """
        structure = self.structure(batch) if structure is None else structure
        with forked_random_state(self.device), evaluating(self.model, self.guide):
            torch.manual_seed(0)
            latents = predictive.posterior_latents(*self.programs, batch, structure, 1, middle=True)
        return {name: value[0] for name, value in latents.items()}

    def interpolate(
        self, a: Inputs, b: Inputs, steps: int = 9, *, path: Literal["linear", "spherical"] = "linear"
    ) -> Tensor:
        r"""Means :math:`E[x \mid z]` on a path from rows ``a`` to rows ``b``: ``(steps, N, *E)``.

        Both are encoded to the middle of :math:`q(z \mid x)`. Every latent of a row follows a straight line or an arc
        between the two. Discrete latents, and the programs' keyword arguments, change halfway.
        """
        starts, ends = self.batch(a), self.batch(b)
        if len(starts) != len(ends):
            raise ValueError(f"a has {len(starts)} rows and b has {len(ends)}: pass as many of each")
        structure = self.structure(starts)
        first, last = self.middle(starts, structure), self.middle(ends, structure)
        way: dict[str, Tensor] = {}
        for name, value in first.items():
            latent = structure.latents[name]
            if not latent.is_local or latent.is_discrete:
                ahead = value if not latent.is_local else last[name]
                way[name] = torch.stack([value if step < steps / 2 else ahead for step in range(steps)])
                continue
            dim = value.dim() - 1 - latent.event_dim
            begin, end = (part.movedim(dim, 0).reshape(len(starts), -1) for part in (value, last[name]))
            between = predictive.interpolate_latents(begin, end, steps, path=path)
            way[name] = between.reshape(steps, *value.movedim(dim, 0).shape).movedim(1, dim + 1)
        arguments = [starts.forward if step < steps / 2 else ends.forward for step in range(steps)]
        return torch.stack(
            [self._at({n: v[step] for n, v in way.items()}, len(starts), arguments[step]) for step in range(steps)]
        )

    def impute(
        self, x: Inputs, num_samples: int = 1, *, num_particles: int = 100, sites: Sequence[str] | None = None
    ) -> Any:
        r"""Draws the missing entries of each row given its observed ones: ``(num_samples, N, *E)``.

        .. math:: z \sim p(z \mid x_\text{obs}),\ x_\text{mis} \sim p(x_\text{mis} \mid z)

        by importance resampling from the guide, see :func:`pyro_vae.inference.imputation.draw_imputations`. As
        ``num_particles`` grows, the draws are exact for the model, whatever the guide. Observed entries are unchanged.

        Args:
            x: Rows with NaN where an entry is missing.
            num_samples: Draws for each row.
            num_particles: Draws from the guide to choose from.
            sites: Names of the sites to fill, if not ``"x"`` alone. Another observed site is filled where its keyword
                argument has missing entries.

        Returns:
            The draws; with ``sites``, a mapping from each site to its draws.
        """
        named = _sites(sites, None)
        rows = self.check(x)
        first = next(rows.chunks(1))
        check_memory(
            num_samples * rows.num_rows * rows.num_elements * self.dtype.itemsize,
            f"{num_samples:,} draws for each of {rows.num_rows:,} rows",
            "draw fewer times, or fill fewer rows at once",
        )
        known = self._mask(arithmetic(first["x"]), first)
        if self.missing is None and known is None and "mask" not in first and "x" in named:
            raise ValueError("nothing says which entries are missing: build the pair with missing='nan' or pass a mask")
        if "x" in named and self._seen(arithmetic(first["x"]), first) is None:
            raise ValueError(f"no entry of {first['x'].dtype} rows can be missing: pass numbers with NaN, or a mask")
        structure: Structure | None = None
        parts: dict[str, list[Tensor]] = {}
        for chunk in rows.chunks(_ROWS):
            batch = self.prepare(chunk)
            structure = self.structure(batch) if structure is None else structure
            size = rows_at_once(self.device)
            for part, start in zip(batch.chunks(size), range(0, len(batch), size), strict=True):
                drawn = draw_imputations(
                    *self.programs,
                    part,
                    num_samples,
                    structure,
                    num_particles=num_particles,
                    finish=self.transform.inverse,
                    sites=named,
                )
                for name, draws in drawn.items():
                    given, seen = self._observed_entries(name, chunk, part, start, structure)
                    if given is not None and seen is not None:
                        draws = torch.where(seen, floating(given.to(draws.device), draws.dtype), draws)
                    parts.setdefault(name, []).append(draws)
        filled = {name: torch.cat(values, dim=1) for name, values in parts.items()}
        return filled if sites is not None else filled["x"]

    def _observed_entries(
        self, name: str, chunk: Mapping[str, Any], part: Batch, start: int, structure: Structure
    ) -> tuple[Tensor | None, Tensor | None]:
        """A site's values as they were passed in, and where they are observed."""
        here = slice(start, start + len(part))
        if name == "x":
            return arithmetic(chunk["x"])[here], part.mask
        in_part = f"{name}_observed" in structure.observed
        argument = structure.observed[f"{name}_observed"] if in_part else structure.observed.get(name)
        if argument is None or argument not in chunk:
            return None, None
        values = chunk[argument][here]
        if in_part:
            return values, seen_by_obs_mask(*self.programs, part, name)
        seen = part.context.get(f"{argument}_mask")
        return values, torch.ones_like(values, dtype=torch.bool) if seen is None else seen


def _taking(program: Callable[..., Any]) -> Callable[..., Any]:
    """The program, called only with the keyword arguments that it takes."""
    names = accepted(program)
    if names is None:
        return program
    names = names | {"batch_size"}

    def called(*rows: Tensor, **arguments: Any) -> Any:
        return program(*rows, **{name: value for name, value in arguments.items() if name in names})

    called.__wrapped__ = program  # pyright: ignore[reportFunctionMemberAccess]
    return called


def _sites(sites: Sequence[str] | None, out: File | None) -> tuple[str, ...]:
    if isinstance(sites, str):
        raise TypeError(f"sites must be a sequence of names, such as ({sites!r},); found {sites!r}")
    if sites is not None and out is not None and len(sites) != 1:
        raise ValueError(f"a file holds one site's draws; sites names {len(sites)}")
    return ("x",) if sites is None else tuple(sites)
