"""The page on how often each finding is false, and which faults are found."""

import functools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from judged.faults import FAULTS, STRENGTHS
from pyro_vae.evaluation.report.thresholds import LEVELS, THRESHOLDS, Level

__all__ = ["HELD_OUT", "any_wrong", "found", "markdown", "named"]

Record = Mapping[str, Any]
HELD_OUT = "held-out/"  # prefix of the keys of cases that thresholds were not set on


def found(record: Record) -> dict[str, Level]:
    """The worst level of each finding, with the current thresholds."""
    levels: dict[str, Level] = {}
    for finding in record["findings"]:
        name = finding["name"]
        level = THRESHOLDS[name].level(**finding["numbers"])
        levels[name] = _worse(levels.get(name, "fine"), level)
    return levels


def any_wrong(record: Record) -> bool:
    """Whether any finding is “wrong”."""
    return "wrong" in found(record).values()


def named(record: Record) -> Level:
    """The worst level of the findings that should detect the fault."""
    levels, own = found(record), FAULTS[record["key"].split("/")[1]].named_by
    return functools.reduce(_worse, (levels[name] for name in own & levels.keys()), "fine")


def _worse(one: Level, other: Level) -> Level:
    return one if LEVELS.index(one) <= LEVELS.index(other) else other


def markdown(records: Sequence[Record]) -> str:
    """The whole page."""
    sound, wrong = _parted(record for record in records if not record["key"].startswith(HELD_OUT))
    new = [{**r, "key": r["key"].removeprefix(HELD_OUT)} for r in records if r["key"].startswith(HELD_OUT)]
    return "\n".join([*_head(sound, wrong, *_parted(new)), *_of_sound(sound), *_of_wrong(wrong), ""])


def _parted(records: Iterable[Record]) -> tuple[list[Record], list[Record]]:
    """The records of sound models, and those of wrong ones."""
    every = list(records)
    return tuple([r for r in every if r["key"].startswith(kind)] for kind in ("sound/", "wrong/"))  # pyright: ignore


def _shares(sound: Sequence[Record], wrong: Sequence[Record]) -> list[str]:
    """The number of sound models that are called wrong, and of gross faults that are not."""
    false = sum(map(any_wrong, sound))
    low, high = _interval(false, len(sound))
    gross = [record for record in wrong if record["key"].endswith("/gross")]
    missed = [record["key"].split("/")[1] for record in gross if named(record) != "wrong"]
    lines = [
        f"- **{false} of {len(sound)} sound models ({false / max(1, len(sound)):.1%}, 95% interval {low:.1%} to "
        f"{high:.1%}) have a false “wrong”.**"
    ]
    if gross:
        others = f" The others: {', '.join(missed)}." if missed else ""
        named_so = len(gross) - len(missed)
        lines.append(f"- **{named_so} of {len(gross)} gross faults are called “wrong” for the right reason.**{others}")
    return lines


def _head(
    sound: Sequence[Record], wrong: Sequence[Record], new_sound: Sequence[Record], new_wrong: Sequence[Record]
) -> list[str]:
    kinds, families = ({record["key"].split("/")[1] for record in part} for part in (wrong, sound))
    return [
        "# The judge, judged",
        "",
        f"How reliable are the report's verdicts? {len(sound)} sound models of {len(families)} families, each with its "
        f"exact guide (in one family, a well-trained network) and its own rows, and {len(wrong)} wrong pairs with "
        f'{len(kinds)} kinds of fault at up to three strengths went through `evaluate_suite(suite="quick")`: all parts '
        f"except annealing and NUTS, with a half to a quarter of its rows, chains, steps and data sets. "
        f"`python scripts/judge.py --page docs/judge.md` writes this page, and its runs were used to set the "
        f"thresholds ([the table](evaluation.md#the-thresholds)). The models are in `scripts/judged/`.",
        "",
        *_shares(sound, wrong),
        "",
        "The thresholds were set on these same cases. On others, drawn afterwards, which no threshold was set on:",
        "",
        *_shares(new_sound, new_wrong),
        "",
        "The rest of this page is about the first set.",
        "",
    ]


def _interval(count: int, num: int) -> tuple[float, float]:
    """The 95% interval of a share (Clopper & Pearson, 1934)."""
    from scipy.stats import beta

    low = float(beta.ppf(0.025, count, num - count + 1)) if count else 0.0
    return low, float(beta.ppf(0.975, count + 1, num - count)) if count < num else 1.0


def _of_sound(sound: Sequence[Record]) -> list[str]:
    levels = [found(record) for record in sound]
    lines = [
        "## Sound models",
        "",
        "How often each finding is false, among the sound models that it applies to:",
        "",
        "| finding | models | worth a look | wrong |",
        "|---|---|---|---|",
    ]
    for name, threshold in THRESHOLDS.items():
        said = [level[name] for level in levels if name in level]
        if said:
            shares = " | ".join(f"{said.count(level) / len(said):.1%}" for level in ("look", "wrong"))
            lines.append(f"| `{name}`: {threshold.what} | {len(said)} | {shares} |")
    lines += [
        "",
        "By family, the number of models with a false “wrong”, with at worst a “worth a look”, and with neither:",
        "",
    ]
    lines += ["| family | models | wrong | look | fine | false findings |", "|---|---|---|---|---|---|"]
    families = dict.fromkeys(record["key"].split("/")[1] for record in sound)
    for family in families:
        of = [level for record, level in zip(sound, levels, strict=True) if record["key"].split("/")[1] == family]
        worst = Counter(min(level.values(), key=LEVELS.index, default="fine") for level in of)
        false = Counter(f"{name} ({said})" for level in of for name, said in level.items() if said != "fine")
        listed = ", ".join(f"{name} {count}×" if count > 1 else name for name, count in false.items())
        lines.append(f"| {family} | {len(of)} | {worst['wrong']} | {worst['look']} | {worst['fine']} | {listed} |")
    return [*lines, ""]


def _of_wrong(wrong: Sequence[Record]) -> list[str]:
    by_key = {record["key"]: record for record in wrong}
    lines = ["## Faults", "", "| strength | faults | wrong for the right reason | worth a look | missed |"]
    lines.append("|---|---|---|---|---|")
    for strength in STRENGTHS:
        said = Counter(named(record) for key, record in by_key.items() if key.endswith(f"/{strength}"))
        lines.append(f"| {strength} | {said.total()} | {said['wrong']} | {said['look']} | {said['fine']} |")
    lines += [
        "",
        "The findings that are “wrong” for each fault, with those that should detect it in bold. Findings in brackets "
        "are only worth a look, and – means that everything is fine:",
        "",
        f"| fault | {' | '.join(STRENGTHS)} |",
        f"|---|{'---|' * len(STRENGTHS)}",
    ]
    for name, fault in FAULTS.items():
        cells = [_cell(by_key.get(f"wrong/{name}/{strength}"), fault.named_by) for strength in STRENGTHS]
        lines.append(f"| **{name}**: {fault.about} | {' | '.join(cells)} |")
    return lines


def _cell(record: Record | None, own: frozenset[str]) -> str:
    if record is None:
        return ""
    levels = found(record)
    shown = {level: [f"**{n}**" if n in own else n for n, said in levels.items() if said == level] for level in LEVELS}
    wrong, look = ", ".join(shown["wrong"]), ", ".join(shown["look"])
    return " ".join(filter(None, [wrong, f"({look})" if look else ""])) or "–"
