"""Pairs of programs drawn at random, from the features that users' programs have.

A :class:`Spec` says what a pair is made of, :class:`Programs` are its model and guide in Pyro. What their sites must
say is reckoned in by_hand.py, row by row, without Pyro.
"""

import random
from contextlib import ExitStack
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import nn

from pyro_vae import Pair

NAMES = ("z", "u_1", "topic", "latent.left", "θ", "k")
FINITE = ("bernoulli", "categorical", "onehot")
COMPONENTS = 3  # elements of the plate that is outside of the rows


@dataclass(frozen=True)
class Site:
    """A site: what it is drawn from, where, and what its location depends on.

    ``frame`` is "global", "shared" (in a plate of components outside of the rows), "row" or "word" (in a plate within
    the row); ``how`` is "draw", "score" (a normal whose draws are not differentiated through), or which program
    enumerates it.
    """

    name: str
    family: str
    frame: str
    parents: tuple[str, ...] = ()
    guide_parents: tuple[str, ...] = ()
    how: str = "draw"

    @property
    def scored(self):
        return self.how == "score" or (self.how == "draw" and self.family in FINITE)


@dataclass(frozen=True)
class Spec:
    latents: tuple[Site, ...]
    observed: tuple[Site, ...]
    guide_order: tuple[str, ...]
    num_rows: int = 3
    words: int = 2
    all_words: int | None = None  # of which the plate takes some
    words_outside: bool = False  # the plate of words around that of the rows
    all_rows: int | None = None
    scale: str = "none"  # "number", "tensor", "rows"
    scale_on: str = "all"  # "x"
    mask: str = "none"  # "poutine", "method", "obs_mask", "guided obs_mask", "lengths"
    mask_on: str = "x"  # "all"
    auxiliary: str | None = None  # the family of a draw that the guide alone makes
    extras: frozenset = frozenset()  # "observes", "observes y", "factor", "model factor", "deterministic"
    arguments: frozenset = frozenset()  # "rows", "number", "tensor", "none"
    stubborn: bool = False  # takes one batch dimension alone

    def site(self, name):
        return next(site for site in (*self.latents, *self.observed) if site.name == name)

    def latent(self, how):
        return [site for site in self.latents if site.how == how]

    @property
    def guided(self):
        return [self.site(name) for name in self.guide_order]

    @property
    def nesting(self):
        return 2 if any(site.frame == "word" for site in (*self.latents, *self.observed)) else 1

    @property
    def scored(self):
        """Names of what the guide draws and cannot differentiate through."""
        return [s.name for s in self.guided if s.scored] + ["u"] * (self.auxiliary in FINITE)


def signal(family, value):
    """What a draw tells the sites that depend on it."""
    if family in ("vector", "onehot"):
        return (value * torch.tensor([1.0, -0.5, 0.3])[: value.shape[-1]]).sum(-1)
    return 0.7 * value


def distribution(family, loc, log_scale):
    scale = log_scale.exp()
    match family:
        case "normal":
            return dist.Normal(loc, scale)
        case "vector":
            return dist.Normal(torch.stack([loc, 0.5 * loc - 1], -1), scale).to_event(1)
        case "gamma":
            return dist.Gamma(1 + (0.3 * loc).exp(), 1 + scale)
        case "bernoulli":
            return dist.Bernoulli(logits=loc)
        case "categorical":
            return dist.Categorical(logits=torch.stack([0 * loc, loc, 0.3 - loc], -1))
        case "onehot":
            return dist.OneHotCategorical(logits=torch.stack([0 * loc, loc, 0.3 - loc], -1))
        case "poisson":
            return dist.Poisson((0.2 * loc).exp())


class Programs(nn.Module):
    """Model and guide of a spec, as methods; all numbers are parameters."""

    def __init__(self, spec, seed=0):
        super().__init__()
        self.spec = spec
        generator = torch.Generator().manual_seed(seed)
        self.theta = nn.ParameterDict()
        names = []
        for site in (*spec.latents, *spec.observed):
            names += [f"model {site.name} {part}" for part in ("bias", "scale", "rows", *site.parents)]
        for site in spec.guided:
            names += [f"guide {site.name} {part}" for part in ("bias", "scale", "x", "rows", "u", *site.guide_parents)]
        names += ["guide u bias", "guide u x", "guide head x", "guide factor x", "guide gap bias", "model factor"]
        for name in names:
            value = 0.6 * torch.randn((), generator=generator)
            self.theta[name.replace(".", "·")] = nn.Parameter(value)

    def get(self, name):
        return self.theta[name.replace(".", "·")]

    def plates(self, num_rows):
        spec = self.spec
        rows = {} if spec.all_rows is None else {"subsample": torch.arange(num_rows)}
        data = pyro.plate("data", spec.all_rows or num_rows, dim=-1, **rows)
        plates = {"global": [], "row": [data]}
        if any(site.frame == "shared" for site in spec.latents):
            plates["shared"] = [pyro.plate("components", COMPONENTS, dim=-1)]
        if spec.nesting == 2:
            some = {} if spec.all_words is None else {"subsample": torch.arange(spec.words)}
            words = pyro.plate("words", spec.all_words or spec.words, dim=-2, **some)
            plates["word"] = [words, data] if spec.words_outside else [data, words]
        return plates

    def around(self, name, frame, plates, seen, lengths, *, mask=True):
        """Plates, scale and mask of a site."""
        spec, stack = self.spec, ExitStack()
        local = frame in ("row", "word")
        everywhere = {"scale": spec.scale_on == "all", "mask": spec.mask_on == "all"}
        if local and spec.scale != "none" and (everywhere["scale"] or name == "x"):
            num = plates["row"][0].subsample_size
            scale = {"number": 0.3, "tensor": torch.tensor(0.3), "rows": 0.3 + torch.arange(num)}[spec.scale]
            stack.enter_context(poutine.scale(scale=scale))
        for plate in plates[frame]:
            stack.enter_context(plate)
        if local and mask and spec.mask == "poutine" and (everywhere["mask"] or name == "x"):
            stack.enter_context(poutine.mask(mask=seen))
        if frame == "word" and spec.mask == "lengths" and (everywhere["mask"] or name == "x"):
            stack.enter_context(poutine.mask(mask=torch.arange(spec.words)[:, None] < lengths))
        return stack

    def location(self, which, site, parents, signals, frame):
        loc = self.get(f"{which} {site.name} bias")
        for parent in parents:
            value = signals[parent]
            if self.spec.site(parent).frame == "word" and frame == "row":
                value = value.sum(-2, keepdim=True)
            elif self.spec.site(parent).frame == "shared":
                value = value.sum(-1, keepdim=True)
            loc = loc + self.get(f"{which} {site.name} {parent}") * value
        return loc

    def model(
        self,
        x=None,
        *,
        batch_size=None,
        y=None,
        c=None,
        seen=None,
        lengths=None,
        temperature=1.0,
        shift=None,
        nothing=None,
    ):
        assert nothing is None
        spec, num_rows = self.spec, batch_size if x is None else len(x)
        plates, signals = self.plates(num_rows), {}
        for site in spec.latents:
            with self.around(site.name, site.frame, plates, seen, lengths):
                loc = self.location("model", site, site.parents, signals, site.frame)
                fn = distribution(site.family, loc, self.get(f"model {site.name} scale"))
                infer = {"enumerate": "parallel"} if site.how == "model" else {}
                value = pyro.sample(site.name, fn, infer=infer)
                signals[site.name] = signal(site.family, value)
                if spec.stubborn and site.frame == "row" and signals[site.name].dim() > spec.nesting:
                    raise RuntimeError("one batch dimension, please")
        for site in spec.observed:
            with self.around(site.name, site.frame, plates, seen, lengths, mask="obs_mask" not in spec.mask):
                loc = self.location("model", site, site.parents, signals, site.frame)
                if site.name == "x":
                    loc = loc * temperature + (0.0 if shift is None else shift)
                    if c is not None:
                        loc = loc + self.get("model x rows") * c
                fn = distribution(site.family, loc, self.get(f"model {site.name} scale"))
                if site.name == "y":
                    pyro.sample("y", fn, obs=y)
                    continue
                if spec.mask == "method":
                    fn = fn.mask(seen)
                rows = x.mT if x is not None and site.frame == "word" else x
                partly = "obs_mask" in spec.mask and x is not None
                drawn = pyro.sample("x", fn, obs=rows, obs_mask=seen if partly else None)
        if "deterministic" in spec.extras:
            pyro.deterministic("note", loc)
        if "model factor" in spec.extras:
            with self.around("model factor", "row", plates, seen, lengths):
                pyro.factor("penalty", self.get("model factor") * torch.arange(1.0, num_rows + 1))
        return drawn

    def guide(self, x, *, y=None, c=None, seen=None, lengths=None):
        spec = self.spec
        plates, signals = self.plates(len(x)), {}
        of = {"global": 0.0, "shared": 0.0}  # what a site of each frame sees of x
        if spec.site("x").frame == "word":
            of |= {"row": x.mean(1), "word": x.mT}
        else:
            of |= {"row": x.sum(1) if x.dim() > 1 else x}
            of |= {"word": of["row"]}
        if spec.auxiliary:
            with self.around("u", "row", plates, seen, lengths):
                loc = self.get("guide u bias") + self.get("guide u x") * of["row"]
                fn = distribution(spec.auxiliary, loc, torch.tensor(0.2))
                signals["u"] = signal(spec.auxiliary, pyro.sample("u", fn, infer={"is_auxiliary": True}))
        for site in spec.guided:
            with self.around(site.name, site.frame, plates, seen, lengths):
                loc = self.location("guide", site, site.guide_parents, signals, site.frame)
                loc = loc + self.get(f"guide {site.name} x") * of[site.frame]
                if spec.auxiliary and site.frame in ("row", "word"):
                    loc = loc + self.get(f"guide {site.name} u") * signals["u"]
                if c is not None and site.frame in ("row", "word"):
                    loc = loc + self.get(f"guide {site.name} rows") * c
                fn = distribution(site.family, loc, self.get(f"guide {site.name} scale"))
                if site.how == "score":
                    fn = fn.has_rsample_(False)
                infer = {"enumerate": "parallel"} if site.how == "guide" else {}
                signals[site.name] = signal(site.family, pyro.sample(site.name, fn, infer=infer))
        if spec.mask == "guided obs_mask":
            with self.around("x", "row", plates, seen, lengths), poutine.mask(mask=~seen):
                pyro.sample("x_unobserved", dist.Normal(self.get("guide gap bias"), 1.0))
        observes = "y" if "observes y" in spec.extras else "head"
        if not spec.extras.isdisjoint(("observes", "observes y")):
            with self.around(observes, "row", plates, seen, lengths):
                pyro.sample(observes, dist.Normal(self.get("guide head x") * of["row"], 1.0), obs=y)
        if "factor" in spec.extras:
            rows = [signals[s.name] for s in spec.guided if s.frame == "row"]
            with self.around("guide factor", "row", plates, seen, lengths):
                value = self.get("guide factor x") * (of["row"] + (rows[0] if rows else 0.0))
                pyro.factor("guide penalty", value, has_rsample=True)


def pair_of(spec, seed=0):
    programs = Programs(spec, seed)
    return Pair(programs.model, programs.guide), programs


def data_of(spec, seed=0):
    """Rows and keyword arguments."""
    generator = torch.Generator().manual_seed(seed)
    num, data = spec.num_rows, {}
    for site in spec.observed:
        shape = {"word": (num, spec.words), "row": (num, 2) if site.family == "vector" else (num,)}[site.frame]
        real = torch.randn(shape, generator=generator)
        data[site.name] = real if site.family in ("normal", "vector") else (real > 0).double()
    if "observes" in spec.extras:
        data["y"] = torch.randn(num, generator=generator)
    if spec.mask in ("poutine", "method", "obs_mask", "guided obs_mask"):
        data["seen"] = torch.arange(num) != 1
    if spec.mask == "lengths":
        data["lengths"] = 1 + torch.arange(num) % spec.words
    if "rows" in spec.arguments:
        data["c"] = torch.randn(num, generator=generator)
    if "number" in spec.arguments:
        data["temperature"] = 0.7
    if "tensor" in spec.arguments:
        data["shift"] = torch.tensor(0.4)
    if "none" in spec.arguments:
        data["nothing"] = None
    return data


THEMES = ("differentiable", "score", "model", "guide", "model and guide", "score and model", "score and guide")


def draw_spec(seed):
    """A pair's features, drawn at random but for the theme, which takes turns."""
    draw = random.Random(seed)

    def chance(p):
        return draw.random() < p

    theme = THEMES[seed % len(THEMES)]
    names = draw.sample(NAMES, 3)
    num, has_words = draw.choice((1, 2, 2, 3)), chance(0.5)
    need = [how for how in theme.split(" and ") if how != "differentiable"]
    hows = [*need, "draw", "draw", "draw"][: max(num, len(need))]
    draw.shuffle(hows)
    latents = []
    for name, how in zip(names, hows, strict=False):
        frames = ["row"] * 4 + ["word"] * 3 * has_words
        if how in ("draw", "score"):
            frames += ["global", "shared"]
        frame = "row" if how == "guide" else draw.choice(frames)
        family = (
            draw.choice(FINITE) if how in ("model", "guide") else draw.choice(("normal", "normal", "vector", "gamma"))
        )
        if how == "score":
            family, how = draw.choice(
                [("bernoulli", "draw"), ("bernoulli", "draw"), ("categorical", "draw"), ("normal", "score")]
            )
            frame = draw.choice(frames[:4] if family == "categorical" else frames)
        latents.append(Site(name, family, frame, how=how))
    latents.sort(key=lambda s: s.frame in ("row", "word"))
    finished = []
    for site in latents:
        parents = [p.name for p in finished if _may_depend(site, p) and chance(0.6)]
        finished.append(Site(site.name, site.family, site.frame, tuple(parents), (), site.how))
    order = [s for s in finished if s.how != "model"]
    if chance(0.3) and not any(s.how == "guide" for s in order):  # what is enumerated keeps the model's order
        draw.shuffle(order)
        order.sort(key=lambda s: s.frame in ("row", "word"))
    before, guide_parents = [], {}
    for site in order:
        # A plate says that its elements do not meet again, and the score function counts on it.
        meet = [p for p in before if _may_depend(site, p) and not (p.scored and p.frame == "word" != site.frame)]
        guide_parents[site.name] = tuple(p.name for p in meet if chance(0.4))
        before.append(site)
    finished = [Site(s.name, s.family, s.frame, s.parents, guide_parents.get(s.name, ()), s.how) for s in finished]

    word = has_words and (any(s.frame == "word" for s in finished) or chance(0.5))
    mask = draw.choice(("none", "none", "poutine", "method", "obs_mask", "guided obs_mask", "lengths"))
    mask = "poutine" if mask == "lengths" and not word else mask
    mask = "none" if mask in ("obs_mask", "guided obs_mask") and word else mask
    families = ("normal",) if word or "obs_mask" in mask else ("normal", "normal", "vector", "bernoulli")
    x = Site("x", draw.choice(families), "word" if word else "row")
    observed = [Site("x", x.family, x.frame, tuple(s.name for s in finished if _may_depend(x, s) and chance(0.85)))]
    if chance(0.4):
        y = Site("y", draw.choice(("normal", "bernoulli", "poisson")), "row")
        observed.append(
            Site("y", y.family, "row", tuple(s.name for s in finished if _may_depend(y, s) and chance(0.5)))
        )
    extras = {extra for extra in ("factor", "model factor", "deterministic") if chance(0.15)}
    if chance(0.25):
        extras.add("observes y" if len(observed) == 2 else "observes")
    summed = any(s.how == "model" for s in finished)
    scale = draw.choice(("none", "none", "number", "tensor", "rows"))
    children = [s for s in (*finished, *observed) if s.frame == "word"]
    outer = [s.name for s in finished if s.how == "model" and s.frame != "word"]
    tied = any(name in site.parents for site in children for name in outer)
    num_rows = 2 if any(s.scored for s in finished) else 3
    return Spec(
        tuple(finished),
        tuple(observed),
        tuple(s.name for s in order),
        num_rows=num_rows,
        words=2,
        all_words=5 if chance(0.3) and not tied else None,
        words_outside=chance(0.5),
        all_rows=draw.choice((None, None, 30)),
        scale=scale,
        scale_on="all" if summed else draw.choice(("all", "x")),
        mask=mask,
        mask_on=draw.choice(("x", "all")),
        auxiliary=draw.choice((None, None, None, "normal", "bernoulli")),
        extras=frozenset(extras),
        arguments=frozenset(a for a in ("rows", "number", "tensor", "none") if chance(0.3)),
        stubborn=chance(0.2) and not summed and not any(s.how == "guide" for s in finished),
    )


def _may_depend(site, parent):
    """A row may depend on the sum of its words, but not if those are summed over."""
    if site.frame in ("global", "shared"):
        return site.frame == parent.frame == "global"
    return not (parent.frame == "word" and site.frame == "row" and parent.how == "model")
