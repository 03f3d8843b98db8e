"""What the sites of generated programs say, reckoned row by row and value by value, without Pyro's traces.

Everything here is a number for one row and one draw. Latents that a program enumerates are summed over by brute force,
all values of all of them, word by word.
"""

import itertools

import torch
from generated import COMPONENTS, distribution, signal


def values_of(family):
    """All values of a discrete family."""
    if family == "bernoulli":
        return [torch.tensor(0.0), torch.tensor(1.0)]
    return list(torch.eye(3)) if family == "onehot" else [torch.tensor(k) for k in range(3)]


class ByHand:
    """The terms of one draw.

    Args:
        programs: The spec and its parameters.
        data: Rows and keyword arguments.
        values: ``values(name, row, word)`` is a latent's value there; row None where it is global, a component's
            number in the place of the row where it is shared.
        num_rows: Rows that share a global latent.
        retrace: Take normal draws as functions of the parameters, with the noise that they had.
    """

    def __init__(self, programs, data, values, *, num_rows=None, retrace=False):
        self.programs, self.spec, self.data, self.values = programs, programs.spec, data, values
        self.num_rows = num_rows or self.spec.num_rows
        self.retrace, self.found = retrace, {}

    def scale(self, name, frame, row):
        spec = self.spec
        if spec.scale == "none" or frame not in ("row", "word") or (spec.scale_on == "x" and name != "x"):
            return 1.0
        return 0.3 + row if spec.scale == "rows" else 0.3

    def is_seen(self, name, frame, row, word):
        spec = self.spec
        if frame not in ("row", "word") or (spec.mask_on == "x" and name != "x"):
            return True
        if spec.mask == "lengths":
            return frame == "row" or word < self.data["lengths"][row]
        by_row = ("poutine", "method", "obs_mask", "guided obs_mask") if name == "x" else ("poutine",)
        return spec.mask not in by_row or row != 1

    def places(self, frame, row):
        """Where a row has sites of a frame: their rows and words."""
        places = {"global": [(None, None)], "shared": [(i, None) for i in range(COMPONENTS)], "row": [(row, None)]}
        return places[frame] if frame in places else [(row, word) for word in range(self.spec.words)]

    # What a site's location is

    def location(self, which, site, parents, value, row, word):
        loc = self.programs.get(f"{which} {site.name} bias")
        for name in parents:
            parent = self.spec.site(name)
            if parent.frame == "word" and site.frame == "word":
                told = signal(parent.family, value(name, row, word))
            else:
                told = sum(signal(parent.family, value(name, *place)) for place in self.places(parent.frame, row))
            loc = loc + self.programs.get(f"{which} {site.name} {name}") * told
        return loc

    def model_fn(self, site, value, row, word):
        get, data = self.programs.get, self.data
        loc = self.location("model", site, site.parents, value, row, word)
        if site.name == "x":
            loc = loc * data.get("temperature", 1.0) + data.get("shift", 0.0)
            if "c" in data:
                loc = loc + get("model x rows") * data["c"][row]
        return distribution(site.family, loc, get(f"model {site.name} scale"))

    def seen_of_x(self, frame, row, word):
        x = self.data["x"]
        if frame in ("global", "shared"):
            return 0.0
        if self.spec.site("x").frame == "word":
            return x[row].mean() if frame == "row" else x[row, word]
        return x[row].sum()

    def guide_fn(self, site, row, word):
        get, local = self.programs.get, site.frame in ("row", "word")
        loc = self.location("guide", site, site.guide_parents, self.value, row, word)
        loc = loc + get(f"guide {site.name} x") * self.seen_of_x(site.frame, row, word)
        if self.spec.auxiliary and local:
            loc = loc + get(f"guide {site.name} u") * signal(self.spec.auxiliary, self.auxiliary_value(row))
        if "c" in self.data and local:
            loc = loc + get(f"guide {site.name} rows") * self.data["c"][row]
        return distribution(site.family, loc, get(f"guide {site.name} scale"))

    def auxiliary_fn(self, row):
        loc = self.programs.get("guide u bias") + self.programs.get("guide u x") * self.seen_of_x("row", row, None)
        return distribution(self.spec.auxiliary, loc, torch.tensor(0.2))

    # Values

    def value(self, name, row, word):
        """A latent's value; as a function of the parameters where that is wanted."""
        site = self.spec.site(name)
        key = (name, row, word)
        if key not in self.found:
            value = self.values(*key)
            if self.retrace and site.family in ("normal", "vector"):
                value = _with_its_noise(self.guide_fn(site, row, word), value)
            self.found[key] = value
        return self.found[key]

    def auxiliary_value(self, row):
        key = ("u", row, None)
        if key not in self.found:
            value = self.values(*key)
            if self.retrace and self.spec.auxiliary == "normal":
                value = _with_its_noise(self.auxiliary_fn(row), value)
            self.found[key] = value
        return self.found[key]

    def probability(self, site, row):
        """Of the value that a latent of the row has, by the guide."""
        return self.guide_fn(site, row, None).log_prob(self.value(site.name, row, None)).exp()

    # What sites say of a row

    def total(self, site, row, log_prob):
        """A site's part of a row: all of its places there."""
        spec, total = self.spec, torch.zeros(())
        for place in self.places(site.frame, row):
            if self.is_seen(site.name, site.frame, row, place[1]):
                total = total + log_prob(*place)
        if site.frame == "word" and spec.all_words is not None:
            total = total * (spec.all_words / spec.words)
        return total if site.frame in ("row", "word") else total / self.num_rows

    def observed(self, name, row, word):
        value = self.data[name][row]
        return value if word is None else value[word]

    def joined(self):
        """The sites that an enumerated latent of the model joins: itself, and those that depend on it."""
        summed = {s.name for s in self.spec.latent("model")}
        return [s for s in (*self.spec.latents, *self.spec.observed) if s.name in summed or summed & set(s.parents)]

    def terms(self, row):
        """Each site's term by kind and name, in nats, and the scale that the programs put on it."""
        spec, terms, joined = self.spec, {}, self.joined()
        if joined:
            observed = [s.name for s in joined if s in spec.observed]
            drawn = [s.name for s in joined if s not in spec.observed and s.how != "model"]
            if "x" in observed and spec.mask == "guided obs_mask":
                drawn.append("x_unobserved")
            names = [f"{n}_observed" if n == "x" and "obs_mask" in spec.mask else n for n in observed]
            left, scale = self.marginal(joined, row), self.scale("z", "row", row)
            if drawn:
                prior = self.marginal(joined, row, hidden=True)
                terms["prior", " & ".join(drawn)], left = (prior, scale), left - prior
            if observed or not drawn:
                terms["likelihood", " & ".join(names or [s.name for s in joined])] = left, scale
        for site in (*spec.latents, *spec.observed):
            if site in joined:
                continue
            value = self.observed if site in spec.observed else self.value

            def log_prob(row, word, site=site, value=value):
                return self.model_fn(site, self.value, row, word).log_prob(value(site.name, row, word))

            kind = "likelihood" if site in spec.observed else "prior"
            name = "x_observed" if site.name == "x" and "obs_mask" in spec.mask else site.name
            terms[kind, name] = self.total(site, row, log_prob), self.scale(site.name, site.frame, row)
        for site in spec.guided:

            def log_prob(row, word, site=site):
                return self.guide_fn(site, row, word).log_prob(self.value(site.name, row, word))

            terms["guide", site.name] = self.total(site, row, log_prob), self.scale(site.name, site.frame, row)
        for key, value in self.extras(row).items():
            terms[key] = value * self.is_seen("extra", "row", row, None), self.scale("extra", "row", row)
        if spec.mask == "guided obs_mask":
            self._gap(terms, row)
        return terms

    def extras(self, row):
        """What has a site in one of the programs alone."""
        spec, get, found = self.spec, self.programs.get, {}
        if spec.auxiliary:
            found["guide", "u"] = self.auxiliary_fn(row).log_prob(self.auxiliary_value(row))
        if not spec.extras.isdisjoint(("observes", "observes y")):
            fn = distribution("normal", get("guide head x") * self.seen_of_x("row", row, None), torch.zeros(()))
            name = "y" if "observes y" in spec.extras else "head"
            found["auxiliary", name] = fn.log_prob(self.data["y"][row])
        if "factor" in spec.extras:
            rows = [s for s in spec.guided if s.frame == "row"]
            told = signal(rows[0].family, self.value(rows[0].name, row, None)) if rows else 0.0
            found["auxiliary", "guide penalty"] = -get("guide factor x") * (self.seen_of_x("row", row, None) + told)
        if "model factor" in spec.extras:
            found["likelihood", "penalty"] = get("model factor") * (row + 1.0)
        return found

    def _gap(self, terms, row):
        """What obs_mask draws in the place of a missing value, where the guide draws it."""
        x, scale = self.spec.site("x"), self.scale("x", "row", row)
        guide, value = self.gap(row)
        if x not in self.joined():
            log_prob = self.model_fn(x, self.value, row, None).log_prob(value)
            terms["prior", "x_unobserved"] = log_prob * (row == 1), scale
        terms["guide", "x_unobserved"] = guide.log_prob(value) * (row == 1), scale

    def gap(self, row):
        value = self.values("x_unobserved", row, None)
        guide = distribution("normal", self.programs.get("guide gap bias"), torch.zeros(()))
        return guide, _with_its_noise(guide, value) if self.retrace else value

    def marginal(self, joined, row, *, hidden=False):
        """Log of the sum over all values of the model's enumerated latents of the probability of what they join.

        Of all of it, or of what is not observed alone.
        """
        spec, summed = self.spec, self.spec.latent("model")
        outer = [s for s in summed if s.frame == "row"]
        inner = [s for s in summed if s.frame == "word"]
        factor = 1.0 if spec.all_words is None else spec.all_words / spec.words
        logs = []
        for values in itertools.product(*(values_of(s.family) for s in outer)):
            given = {(s.name, row, None): v for s, v in zip(outer, values, strict=True)}
            log = self._log_joint([s for s in joined if s.frame == "row"], given, row, None, hidden=hidden)
            for word in range(spec.words):
                alternatives = []
                for within in itertools.product(*(values_of(s.family) for s in inner)):
                    both = given | {(s.name, row, word): v for s, v in zip(inner, within, strict=True)}
                    of_word = [s for s in joined if s.frame == "word"]
                    alternatives.append(self._log_joint(of_word, both, row, word, hidden=hidden))
                log = log + factor * torch.stack(alternatives).logsumexp(0)
            logs.append(log)
        return torch.stack(logs).logsumexp(0)

    def _log_joint(self, sites, given, row, word, *, hidden):
        def value(name, row, word):
            return given[name, row, word] if (name, row, word) in given else self.value(name, row, word)

        total = torch.zeros(())
        for site in sites:
            is_summed = site.how == "model"
            seen = is_summed or self.is_seen(site.name, site.frame, row, word)
            if seen and hidden and site in self.spec.observed:
                continue
            if seen:
                here = self.observed if site in self.spec.observed else value
                total = total + self.model_fn(site, value, row, word).log_prob(here(site.name, row, word))
            elif self.spec.mask == "guided obs_mask":
                total = total + self.model_fn(site, value, row, word).log_prob(self.gap(row)[1])
        return total


def _with_its_noise(fn, value):
    """A draw of a normal as a function of its parameters."""
    base = getattr(fn, "base_dist", fn)
    noise = ((value - base.loc) / base.scale).detach()
    return base.loc + base.scale * noise


def objective_of(terms):
    """The ELBO, and what is trained beside it."""
    signs = {"likelihood": 1.0, "prior": 1.0, "guide": -1.0, "auxiliary": 1.0}
    return sum(signs[kind] * value for (kind, _), value in terms.items())


def reader(latents, event_dims, at):
    """Values in programs' shapes as a function of name, row and word, at these indices of dims further left."""

    def values(name, row, word):
        value, batch = latents[name], latents[name].dim() - event_dims[name]
        index = []
        for dim in range(-batch, 0):
            wanted = {-1: row, -2: word, **at}.get(dim)
            index.append(0 if wanted is None or value.shape[dim - event_dims[name]] == 1 else wanted)
        return value[tuple(index)]

    return values
