"""The page: a plane of latents to point at, a row with its evidence, sliders for latents, and a blend of two rows."""

import functools
import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from bokeh.events import MouseMove
from bokeh.layouts import column, row
from bokeh.models import ColumnDataSource, Div, Select, Slider
from bokeh.plotting import figure
from torch import Tensor

from pyro_vae._support.arrays import as_tensor
from pyro_vae.data.rows import Inputs
from pyro_vae.evaluation import log_evidence
from pyro_vae.explorer.colours import colours_of
from pyro_vae.explorer.neighbours import Neighbours
from pyro_vae.explorer.plane import Plane
from pyro_vae.explorer.views import WIDTH, view_of
from pyro_vae.pair import Pair

__all__ = ["Page"]

_SLIDERS = 8
_PARTICLES = 500
_STEPS = 20  # of a blend


class Page:
    r"""A page on a trained pair and some rows. Call it with a Bokeh document to fill the document.

    The plane shows the rows' posterior means in their two principal directions. Pointing at it decodes the latents
    under the pointer. Tapping chooses a row and shows a reconstruction, a draw like it and its evidence. Sliders move
    the latents that vary most over rows, starting from the chosen row. The last two chosen rows are blended.

    Args:
        pair: A trained pair.
        x: The rows, with their keyword arguments if the programs take any; latents are decoded with those of the chosen
            row.
        colours: Values to colour rows by: a name, and a value for each row.
        schema: The schema, for rows of a table.
        title: Title of the page.
        site: The latent; by default the only one, or ``"z"``.
        plane: Maps posterior means ``(N, L)`` to two dimensions. With ``Neighbours.of`` that is UMAP, and the pointer
            decodes the latents of the nearest row.

    Raises:
        ValueError: if the latent is discrete.
    """

    def __init__(
        self,
        pair: Pair,
        x: Inputs,
        *,
        colours: Mapping[str, Sequence[Any]] | None = None,
        schema: Any = None,
        title: str = "",
        site: str | None = None,
        plane: Callable[[Tensor], Plane | Neighbours] = Plane.through,
    ) -> None:
        self.pair, self.schema, self.title = pair, schema, title
        pair.check(x)
        named = x if isinstance(x, Mapping) else {"x": x}
        self.rows = {name: as_tensor(value) for name, value in named.items()}
        self.structure = pair.structure(pair.batch(self.row(0)))
        self.site = self.structure.site(site)
        q: Any = pair.encode(x, site=self.site)
        if q.support.is_discrete:
            raise ValueError(
                f"the latent {self.site!r} is discrete, but the explorer needs continuous ones: give another site"
            )
        once = functools.lru_cache(maxsize=2)  # does not depend on the pointer or a slider
        self._middle = once(lambda number: pair.middle(pair.batch(self.row(number)), self.structure))
        self._way = once(lambda a, b: pair.interpolate(self.row(a), self.row(b), _STEPS + 1))
        self.shape = q.mean.shape[1:]
        self.means = q.mean.cpu().flatten(1)
        self.scales = q.stddev.cpu().flatten(1)
        self.plane = plane(self.means)
        self.colours = {"nothing": ["all rows"] * len(self.means), **(colours or {})}
        spread = self.means.var(0, correction=0)
        order = spread.argsort(descending=True)[:_SLIDERS]
        self.moved = [int(place) for place in order if spread[place] > 0.01 * spread.max()]

    def row(self, number: int) -> dict[str, Tensor]:
        """One row, with its keyword arguments."""
        return {name: value[number : number + 1] if value.dim() else value for name, value in self.rows.items()}

    def mean_at(self, z: Tensor, number: int) -> Tensor:
        """The mean of x at latents ``(L,)``, with everything else as in row ``number``."""
        row, latents = self.row(number), self._middle(number)
        value = z.reshape(1, *self.shape).to(latents[self.site])
        given = {name: value for name, value in row.items() if name not in ("x", "mask")}
        return self.pair.mean_at(latents | {self.site: value.reshape(latents[self.site].shape)}, given=given)[0].cpu()

    def blend(self, a: int, b: int, share: float) -> Tensor:
        """The mean of x between two rows."""
        return self._way(a, b)[round(_STEPS * share), 0].cpu()

    def beliefs(self, number: int) -> str:
        """The evidence of a row, and whether it is reliable, as HTML."""
        found = log_evidence(self.pair, self.row(number), num_particles=_PARTICLES)
        value, error, shape = (float(x[0]) for x in (found.log_evidence, found.standard_error, found.k_hat))
        trust = "reliable" if bool(found.reliable[0]) else "not reliable: too few draws carry the weight"
        text = f"log evidence {value:.2f} ± {error:.2f} nats; k̂ {shape:.2f}, {trust}".replace("-", "−")
        said = [f"{name}: {values[number]}" for name, values in self.colours.items() if name != "nothing"]
        return f"<b>row {number}</b> {html.escape(', '.join(said[:6]))}<br>{text}"

    def __call__(self, document: Any) -> None:
        """Fills a Bokeh document."""
        x = self.rows["x"]
        seen = view_of(("row", "reconstruction", "a draw like it"), x, self.schema)
        answers = view_of(("at the pointer", "at the sliders", "the blend"), x, self.schema)
        shown: list[Tensor | None] = [None, None, None]  # at the pointer, at the sliders, the blend
        chosen = [0, 0]  # the row, and the one before it

        points = self.plane.points(self.means).numpy()
        source = ColumnDataSource({"a": points[:, 0], "b": points[:, 1], "colour": ["#1f77b4"] * len(points)})
        plane = figure(
            width=WIDTH + 120, height=WIDTH + 120, tools="pan,wheel_zoom,tap,reset", active_scroll="wheel_zoom"
        )
        plane.scatter("a", "b", source=source, size=5, color="colour", alpha=0.7, nonselection_alpha=0.35)
        plane.xaxis.axis_label, plane.yaxis.axis_label = self.plane.axes

        by = Select(
            title="colour by", options=list(self.colours), value=list(self.colours)[-1 if len(self.colours) == 2 else 0]
        )
        legend, told = Div(text="", width=WIDTH + 120), Div(text="", width=WIDTH, name="told")
        sliders = [self._slider(place) for place in self.moved]
        blend = Slider(title="blend of the last two rows chosen", start=0, end=1, step=1 / _STEPS, value=0.5)

        def colour(attr: str, old: Any, new: Any) -> None:
            colours, legend.text = colours_of(self.colours[str(by.value)])
            source.patch({"colour": [(slice(None), colours)]})

        def point(event: Any) -> None:
            if event.x is None or event.y is None:
                return
            place = torch.tensor([[event.x, event.y]], dtype=self.means.dtype)
            shown[0] = self.mean_at(self.plane.latents(place)[0], chosen[0])
            answers.show(shown)

        def move(attr: str, old: Any, new: Any) -> None:
            z = self.means[chosen[0]].clone()
            for place, slider in zip(self.moved, sliders, strict=True):
                z[place] = float(slider.value)  # pyright: ignore[reportArgumentType]
            shown[1] = self.mean_at(z, chosen[0])
            answers.show(shown)

        def mix(attr: str, old: Any, new: Any) -> None:
            shown[2] = self.blend(chosen[1], chosen[0], float(blend.value))  # pyright: ignore[reportArgumentType]
            answers.show(shown)

        def choose(attr: str, old: Any, new: Sequence[int]) -> None:
            if not new:
                return
            if new[0] != chosen[0]:
                chosen[:] = [new[0], chosen[0]]
            rows = self.row(chosen[0])
            draw = self.pair.posterior_predictive(rows, 1)[0, 0]
            seen.show([rows["x"][0], self.pair.reconstruct(rows)[0], draw])
            told.text = self.beliefs(chosen[0])
            for place, slider in zip(self.moved, sliders, strict=True):
                slider.value = float(self.means[chosen[0], place])
            move("", None, None)
            mix("", None, None)

        by.on_change("value", colour)
        plane.on_event(MouseMove, point)
        source.selected.on_change("indices", choose)
        for slider in sliders:
            slider.on_change("value", move)
        blend.on_change("value", mix)
        colour("", None, None)
        choose("", None, [0])
        heading = Div(text=f"<h2>{html.escape(self.title)}</h2>Point at the plane; tap a point to choose its row.")
        document.title = self.title or "pyro_vae"
        document.add_root(
            column(heading, row(column(plane, by, legend), column(told, seen.model, answers.model, blend, *sliders)))
        )

    def _slider(self, place: int) -> Slider:
        """A slider over a latent's range in the rows, and a little further."""
        values, scale = self.means[:, place], float(self.scales[:, place].mean())
        low, high = float(values.min()) - 2 * scale, float(values.max()) + 2 * scale
        return Slider(
            title=f"{self.site}[{place}]", start=low, end=high, step=(high - low) / 100, value=float(values[0])
        )
