"""Numbers, tables and a picture of what ``scripts/benchmark.py`` measured."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from pyro_vae._support import files, markdown

Numbers = dict[str, Any]
TITLES = {
    "whole": "From command to trained model: an MLP, 784-400-50",
    "mlp": "Training an MLP, 784-400-50",
    "conv": "Training a convolutional VAE, channels 32 and 64, 50 latents",
    "samples": "Sampling from the prior",
    "evidence": "Importance-weighted evidence",
    "growth": "Growth of the cost of a step",
}
SIZES = {"batch_size": "batch", "latent_dim": "latents", "num_particles": "particles"}


def median(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)


def section(unit: str, found: Numbers, left_out: Mapping[str, str], references: Sequence[str]) -> Numbers:
    """The measurements, with every contender's ratios to each reference, round by round."""
    ratios = {}
    for reference in references:
        if reference in found:
            base = found[reference]["seconds"]
            ratios[reference] = {
                label: summary([a / b for a, b in zip(row["seconds"], base, strict=True)])
                for label, row in found.items()
            }
    return {"unit": unit, "contenders": found, "ratios": ratios, "left_out": dict(left_out)}


def summary(values: Sequence[float]) -> Numbers:
    """Median and range of the rounds."""
    return {"median": median(values), "low": min(values), "high": max(values)}


def joined(before: Numbers, now: Numbers) -> Numbers:
    """The new sections, together with earlier ones from the same machine, versions and settings."""
    same = all(before.get(key) == now[key] for key in ("machine", "versions", "settings"))
    return now | {"sections": {**before["sections"], **now["sections"]}} if same else now


# Words


def document(results: Sequence[Numbers]) -> str:
    """Tables of all machines, in Markdown."""
    parts = [part for each in results for part in machine_tables(each)]
    if not any("gpu" in each["machine"] for each in results):
        parts.append(
            "## On a GPU\n\nNot yet measured by this command, which uses a GPU if there is one. Earlier "
            "measurements on a GPU are in [gpu.md](../gpu.md)."
        )
    return "\n\n".join(parts) + "\n"


def machine_tables(results: Numbers) -> list[str]:
    """The tables of one machine."""
    machine, settings = results["machine"], results["settings"]
    cpu = f"{machine['cpu']}, {machine['cores']} cores with {machine['vectors']}"
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    parts = [
        f"## On {machine['gpu'] + ' (' + cpu + ')' if 'gpu' in machine else cpu}\n\n"
        f"{results['date']}; {versions}. Float32 unless stated otherwise; {settings['data']}, batches of "
        f"{settings['batch_size']}. Medians of {settings['rounds']} rounds, with the lowest and highest in brackets."
    ]
    for name, found in results["sections"].items():
        table = {"growth": growth_table, "whole": whole_table}.get(name, contender_table)(found)
        notes = [f"{label} is left out: {why}." for label, why in found.get("left_out", {}).items()]
        parts.append(
            f"### {TITLES[name]}{details(name, found)}\n\n" + "\n".join([table, *(["", *notes] if notes else [])])
        )
    return parts


def details(name: str, found: Numbers) -> str:
    """The amount of work."""
    if name in ("mlp", "conv"):
        return f", {found['num_rows']:,} rows per epoch"
    if name == "whole":
        rounds = max((len(row["seconds"]) for row in found["contenders"].values()), default=0)
        return f", {found['epochs']} epochs of {found['num_rows']:,} rows; {rounds} rounds"
    if name == "samples":
        return f", {found['count']:,} draws"
    return f", {found['num_particles']:,} particles" if name == "evidence" else ""


def spread(values: Sequence[float] | Numbers, form: str = ".2f") -> str:
    """Median (lowest to highest)."""
    s = values if isinstance(values, Mapping) else summary(values)
    return f"{s['median']:{form}} ({s['low']:{form}} to {s['high']:{form}})"


def contender_table(found: Numbers) -> str:
    """A row for every contender."""
    training = "num_rows" in found
    head = ["", "seconds per epoch" if training else "per second", *(f"relative to {r}" for r in found["ratios"])]
    head += ["ELBO, nats", "peak memory, MiB", "first step, s from start", "s from call"] if training else []
    rows = []
    for label, row in found["contenders"].items():
        seconds = row["seconds"]
        cells = [label, spread(seconds, ".3f") if training else spread([found["count"] / s for s in seconds], ",.0f")]
        cells += [spread(ratios[label]) for ratios in found["ratios"].values()]
        if training:
            elbo = spread(row["elbo"], ".1f").replace("-", "−") if "elbo" in row else ""
            first = row["first_step"]
            cells += [elbo, f"{row['peak_memory']:,.0f}", f"{first['from_start']:.1f}", f"{first['from_call']:.1f}"]
        rows.append(cells)
    return markdown.table(head, rows)


def whole_table(found: Numbers) -> str:
    """A row for every contender, from the start of its process."""
    goal = f"{found['goal']:.0f} nats".replace("-", "−")
    references = list(found["ratios"])
    head = ["", "seconds", *(f"relative to {r}" for r in references), f"seconds to {goal}"]
    head += [*(f"relative to {r}" for r in references), "at epoch", "test ELBO, nats", "peak memory, MiB"]
    rows = []
    for label, row in found["contenders"].items():
        cells = [label, spread(row["seconds"], ".1f")]
        cells += [spread(found["ratios"][r][label]) for r in references]
        both = [(row["to_goal"], row["to_goal"])]
        both += [(row["to_goal"], found["contenders"][r]["to_goal"]) for r in references]
        for number, (times, base) in enumerate(both):
            pairs = [(a, b) for a, b in zip(times, base, strict=True) if a is not None and b is not None]
            values = [a / b if number else a for a, b in pairs]
            cells.append(spread(values, ".2f" if number else ".1f") if values else "not reached")
        at = [epoch for epoch in row["goal_epoch"] if epoch is not None]
        cells += [spread(at, ".0f") if at else "", spread(row["elbo"], ".2f").replace("-", "−")]
        rows.append([*cells, f"{row['peak_memory']:,.0f}"])
    return markdown.table(head, rows)


def growth_table(found: Numbers) -> str:
    """Milliseconds per step at every size."""
    labels = list(dict.fromkeys(label for sizes in found["sizes"].values() for label in sizes))
    rows = []
    for name, by_label in found["sizes"].items():
        for value in dict.fromkeys(value for times in by_label.values() for value in times):
            cells = [spread([1e3 * s for s in by_label[label][value]], ".2f") for label in labels]
            rows.append([f"{SIZES[name]} {int(value):,}", *cells])
    return markdown.table(["milliseconds per step", *labels], rows)


INTRODUCTION = """# Speed compared with Pyro, PyTorch and NumPyro

This page is written by `python scripts/benchmark.py --data-root … --out docs/benchmarks/NAME`. Its numbers are in
`NAME.json`.

All contenders train the same model on the same binarised rows. Every epoch shuffles the rows, draws the bits of each
batch again, and takes one step of Adam (1e-3) per batch. Rows that do not fill a batch are left out for all. Each
contender is a separate process with a cold start, and is idle while another runs. In each round it trains fresh
weights for a few epochs, and the last epoch counts. Ratios compare two contenders in the same round. The ELBO is that
of the last epoch's rows. It shows that all train alike, with a lead of a few nats in the first epochs for a
closed-form KL. Peak memory is that of one training, data and compiler included. The first step is taken on one batch,
so its time includes imports (from start) and compilation, but not checking all rows.

The whole training is timed from the start of the process, imports and compilation included. One time is to its end,
the other to the end of the first epoch at which the ELBO of the test rows, whose bits are drawn once, reaches the
goal. All contenders evaluate the test rows after every epoch. Cold means that nothing had been compiled on the
machine before, warm that the same training had.

- **Pyro example**: a `DataLoader` over tensors, `SVI.step` with `Trace_ELBO` and `pyro.optim.Adam`, with Pyro's
  default validation. The example decodes every image again in each epoch; that is left out here.
- **PyTorch**: a hand-written loop; rows on the device, the KL in closed form, fused Adam; its loss compiled, or its
  step as one CUDA graph.
- **NumPyro**: like its example; the epoch is one jitted loop on the device, with `SVI.update` and `Trace_ELBO`.
- **products**: only the five large matrix products of a step of the MLP, forward and backward.
"""


def write_document(folder: Path) -> None:
    """Writes README.md with the tables of every machine in the folder."""
    parts = [INTRODUCTION]
    found = [(path, files.read_json(path)) for path in sorted(folder.glob("*.json"))]
    pictures = "\n".join(f"![Ratios and growth]({path.stem}.png)" for path, _ in found)
    with files.replacing(folder / "README.md") as temporary:
        text = "\n".join([*parts, document([results for _, results in found]), pictures]) + "\n"
        temporary.write_text(text, encoding="utf-8")


# Picture


def figure(results: Numbers) -> Figure:
    """Bars of ratios with their spreads, and the growth of a step's cost."""
    sections = results["sections"]
    barred = [name for name in ("whole", "mlp", "conv", "samples", "evidence") if sections.get(name, {}).get("ratios")]
    sizes = sections.get("growth", {}).get("sizes", {})
    heights = [0.75 + 0.3 * len(sections[name]["contenders"]) for name in barred] + ([2.8] if sizes else [])
    made = Figure(figsize=(9, max(2, sum(heights))), layout="constrained")
    grid = made.add_gridspec(max(1, len(heights)), 1, height_ratios=heights or [1])
    for place, name in enumerate(barred):
        draw_ratios(made, made.add_subplot(grid[place]), TITLES[name], sections[name])
    if sizes:
        axes = grid[len(barred)].subgridspec(1, len(sizes)).subplots(sharey=True, squeeze=False)[0]
        for place, (name, by_label) in enumerate(sizes.items()):
            draw_growth(axes[place], SIZES[name], by_label, named=place == 0)
    return made


def draw_ratios(made: Figure, axes: Axes, title: str, found: Numbers) -> None:
    """A bar for each contender's time relative to the first reference."""
    reference, ratios = next(iter(found["ratios"].items()))
    labels = list(ratios)
    medians = [ratios[label]["median"] for label in labels]
    spreads = [[m - ratios[label]["low"] for m, label in zip(medians, labels, strict=True)]]
    spreads.append([ratios[label]["high"] - m for m, label in zip(medians, labels, strict=True)])
    colours = ["tab:orange" if label.startswith("pyro_vae") else "tab:blue" for label in labels]
    colours = ["0.6" if label.startswith("products") else c for label, c in zip(labels, colours, strict=True)]
    axes.barh(labels, medians, xerr=spreads, color=colours, height=0.65, error_kw={"elinewidth": 1, "capsize": 2})
    axes.axvline(1, color="0.3", linewidth=0.8, linestyle=":")
    beside = ScaledTranslation(6 / 72, 0, made.dpi_scale_trans)  # six points right of the range
    for place, label in enumerate(labels):
        text = axes.text(ratios[label]["high"], place, f"{medians[place]:.2f}", va="center", fontsize=8, zorder=3)
        text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1})
        text.set_transform(axes.transData + beside)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * max(ratios[label]["high"] for label in labels))
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel(f"time relative to {reference} (bar: median of the rounds; line: range)", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def draw_growth(axes: Axes, name: str, by_label: Numbers, *, named: bool) -> None:
    """Milliseconds a step against one size."""
    for label, times in by_label.items():
        values = [int(value) for value in times]
        axes.plot(values, [1e3 * median(s) for s in times.values()], marker="o", markersize=3, label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    ticks = [int(v) for v in next(iter(by_label.values()))]
    axes.set_xticks(ticks, [str(v) for v in ticks])
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    axes.set_xlabel(name, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    if named:
        axes.set_ylabel("ms per step", fontsize=8)
        axes.legend(fontsize=7, frameon=False)
