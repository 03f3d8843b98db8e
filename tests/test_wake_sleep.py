"""Wake-sleep against sums over all rows and latents of a model that has few of either."""

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import LinearGaussian
from torch import nn
from zoo import ZOO

from pyro_vae import Elbo, Pair, WakeSleep, categorical_vae, fit, mlp_vae
from pyro_vae.inference.sites import run_pair
from pyro_vae.likelihoods import Bernoulli

X = torch.tensor(list(itertools.product((0.0, 1.0), repeat=3)))  # all rows there are


class Model(nn.Module):
    """One of four kinds, and three bits that depend on it; nothing of it learns unless it is told to."""

    def __init__(self, *, learns=False):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.prior = nn.Parameter(torch.randn(4, generator=generator), requires_grad=learns)
        self.logits = nn.Parameter(2 * torch.randn(4, 3, generator=generator), requires_grad=learns)

    def forward(self, x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Categorical(logits=self.prior))
            return pyro.sample("x", dist.Bernoulli(logits=self.logits[z]).to_event(1), obs=x)

    def log_joint(self, x):
        """``(N, 4)``."""
        log_x = dist.Bernoulli(logits=self.logits).to_event(1).log_prob(x[:, None])
        return self.prior.log_softmax(0) + log_x


class Guide(nn.Module):
    """A row of a table for each row of data, so that it can be the posterior."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(0.5 * torch.randn(8, 4, generator=torch.Generator().manual_seed(1)))

    def logits(self, x):
        return self.table[(x @ x.new_tensor([4, 2, 1])).long()]

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Categorical(logits=self.logits(x)))


def gradients(pair, x, objective, repeats):
    """The mean gradient by each parameter, with its standard error."""
    batch, parameters = pair.prepare({"x": x}), [p for p in pair.parameters() if p.requires_grad]
    structure, found = pair.structure(batch), []
    particles = objective.num_particles if objective.num_particles > 1 else None
    for _ in range(repeats):
        draws = run_pair(*pair.programs, batch, structure, num_particles=particles)
        each = torch.autograd.grad(objective(draws, torch.ones(())).mean(), parameters)
        found.append(torch.cat([g.flatten() for g in each]))
    assert not draws.without_score_function
    found = torch.stack(found)
    return found.mean(0), found.std(0) / repeats**0.5


def agrees(found, expected):
    mean, error = found
    assert bool(((mean - expected).abs() < 5 * error + 1e-9).all())
    assert float(error.max()) < 0.2 * float(expected.abs().max())  # so that it could have failed


@pytest.mark.usefixtures("float64")
def test_asleep_the_guide_goes_down_the_kl_over_all_rows_that_there_are():
    model, guide = Model(), Guide()
    log_joint = model.log_joint(X.double())
    value = (log_joint.exp() * guide.logits(X.double()).log_softmax(-1)).sum()
    (expected,) = torch.autograd.grad(value, guide.table)
    rows = X[torch.arange(400) % 8].double()  # whatever the rows are
    agrees(gradients(Pair(model, guide), rows, WakeSleep(1, "sleep"), 60), expected.flatten())


@pytest.mark.usefixtures("float64")
def test_awake_the_guide_goes_down_the_inclusive_kl_of_each_row_as_draws_grow():
    model, guide = Model(), Guide()
    x = X.double()
    posterior = model.log_joint(x).softmax(-1)
    value = (posterior * guide.logits(x).log_softmax(-1)).sum(-1).mean()
    (expected,) = torch.autograd.grad(value, guide.table)
    agrees(gradients(Pair(model, guide), x, WakeSleep(4000, "wake"), 40), expected.flatten())


@pytest.mark.usefixtures("float64")
def test_with_few_draws_the_gradients_are_those_of_normalised_weights():
    """Brute force over all pairs of draws of the two latents of one row."""
    model, guide = Model(learns=True), Guide()
    x = X[5:6].double()
    log_p, log_q = model.log_joint(x)[0], guide.logits(x)[0].log_softmax(-1)
    parameters = [*model.parameters(), guide.table]
    value = torch.zeros(())
    for pair in itertools.product(range(4), repeat=2):
        pair = torch.tensor(pair)
        weights = (log_p[pair] - log_q[pair]).softmax(0).detach()
        probability = log_q[pair].sum().exp().detach()
        value = value + probability * (weights * (log_p[pair] + log_q[pair])).sum()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)])
    agrees(gradients(Pair(model, guide), x.expand(1000, 3), WakeSleep(2, "wake"), 30), expected)


@pytest.mark.parametrize("guide", ["sleep", "wake", "both"])
def test_the_guide_comes_to_the_exact_posterior(guide):
    pair = Pair(Model(), Guide())
    torch.manual_seed(0)
    x = X[torch.randint(8, (1024,))]
    options = {"epochs": 60, "batch_size": 128, "learning_rate": 0.05, "compile": False, "progress": False}
    fit(pair, x, objective=WakeSleep(1 if guide == "sleep" else 20, guide), **options)
    with torch.no_grad():
        log_joint, found = pair.model.log_joint(X), pair.guide.logits(X).softmax(-1)
    posterior = log_joint.softmax(-1)
    weights = log_joint.logsumexp(-1).exp()  # asleep, rows are met as often as the model dreams of them
    kl = (posterior * (posterior / found).log()).sum(-1)
    assert float((weights * kl).sum()) < 0.01
    assert float((posterior - found).abs().max()) < 0.15


@pytest.mark.usefixtures("float64")
def test_the_model_learns_as_by_the_importance_weighted_bound_and_no_gradient_goes_through_draws():
    torch.manual_seed(0)
    lg = LinearGaussian()
    vae, x = lg.vae, lg.draw(5)
    batch = vae.prepare({"x": x})
    structure, of_model = vae.structure(batch), list(vae.model.parameters())
    torch.manual_seed(1)
    draws = run_pair(*vae.programs, batch, structure, num_particles=3)
    found = torch.autograd.grad(WakeSleep(3, "wake")(draws, torch.ones(())).sum(), [*of_model, *vae.guide.parameters()])
    torch.manual_seed(1)
    with torch.no_grad():
        z = vae.encoder(x).expand((3, 5)).rsample()
    q = vae.encoder(x)
    log_p = vae.prior().log_prob(z) + vae.decoder(z).log_prob(x)
    log_weights = log_p - q.log_prob(z)
    value = log_weights.logsumexp(0).sum()
    torch.testing.assert_close(WakeSleep(3, "wake")(draws, torch.ones(())).sum() + 5 * torch.tensor(3.0).log(), value)
    expected = torch.autograd.grad(value, of_model, retain_graph=True)
    by_guide = torch.autograd.grad(
        (log_weights.softmax(0).detach() * q.log_prob(z)).sum(), list(vae.guide.parameters())
    )
    for here, there in zip(found, (*expected, *by_guide), strict=True):
        torch.testing.assert_close(here, there)


def test_the_guide_covers_both_modes_where_the_elbo_has_it_choose_one():
    """z is normal and x its absolute value: the posterior lies at x and at -x (a normal between covers both)."""

    class Folded(nn.Module):
        def forward(self, x=None, *, batch_size=None):
            with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
                z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
                return pyro.sample("x", dist.Normal(z.abs(), 0.2), obs=x)

    class Normal(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc, self.log_scale = nn.Parameter(torch.tensor(0.3)), nn.Parameter(torch.zeros(()))

        def forward(self, x):
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Normal(self.loc * x, self.log_scale.exp() * torch.ones_like(x)))

    found = {}
    for name, objective in {"elbo": Elbo(), "sleep": WakeSleep(1, "sleep")}.items():
        torch.manual_seed(0)
        pair = Pair(Folded(), Normal())
        x = pair.sample(1000)
        fit(pair, x, objective=objective, epochs=40, learning_rate=0.05, compile=False, progress=False)
        found[name] = float(pair.guide.loc.detach()), float(pair.guide.log_scale.detach().exp())
    assert abs(found["elbo"][0]) > 0.8  # one of the two
    assert found["elbo"][1] < 0.3
    assert abs(found["sleep"][0]) < 0.15  # their mean, and the spread of both, which is that of z
    assert found["sleep"][1] == pytest.approx(1, abs=0.1)


@pytest.mark.usefixtures("compiled_if_exhaustive")
def test_training_goes_up_compiled_and_as_programs_alike():
    torch.manual_seed(1)
    x = (torch.rand(192, 1) + 0.5 * torch.rand(192, 6) > 0.75).float()

    def build():
        torch.manual_seed(0)
        return categorical_vae((6,), 2, 3, likelihood=Bernoulli(), hidden_dims=(8,), estimator="score-function")

    options = {"epochs": 5, "batch_size": 32, "learning_rate": 0.02, "progress": False, "seed": 0}
    eager, compiled = (fit(build(), x, objective=WakeSleep(4), compile=compile, **options) for compile in (False, True))
    assert compiled.attrs["execution"] == "compiled"
    assert compiled["objective"].tolist() == pytest.approx(eager["objective"].tolist(), rel=1e-4)
    assert eager["objective"].iloc[-1] > eager["objective"].iloc[0]


@pytest.mark.parametrize(
    "name",
    ["multimodal", "missing entries", "scaled", "subsampled", "ladder", "score function", "deep Markov", "topic model"],
)
def test_it_trains_programs_of_many_kinds(name):
    programs, rows = ZOO[name].build(), ZOO[name].rows()
    pair = Pair(programs.model, programs.guide, missing="nan" if name == "missing entries" else None)
    before = {n: p.detach().clone() for n, p in pair.named_parameters()}
    history = fit(pair, rows, objective=WakeSleep(3), epochs=3, learning_rate=0.01, compile=False, progress=False)
    assert history["objective"].notna().all()
    assert any(not torch.equal(p, before[n]) for n, p in pair.named_parameters()) or not before


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("common scale", "lies outside the plate 'data'"),
        ("enumerated guide", "this guide enumerates them: remove"),
    ],
)
def test_programs_that_it_is_not_for_are_refused(name, words):
    if name == "enumerated guide":
        pair = categorical_vae((6,), 2, 3, likelihood=Bernoulli(), estimator="enumerated")
        rows = torch.ones(20, 6)
    else:
        pair, rows = Pair(ZOO[name].build().model, ZOO[name].build().guide), ZOO[name].rows()
    with pytest.raises(ValueError, match=words):
        fit(pair, rows, objective=WakeSleep(), epochs=1, progress=False)


def test_a_guide_of_points_is_refused():
    vae = mlp_vae((6,), 2, likelihood=Bernoulli())

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Delta(vae.encoder(x).mean, event_dim=1))

    with pytest.raises(ValueError, match="the guide sets 'z' to a point, and has no density there"):
        fit(Pair(vae.model, guide), torch.ones(20, 6), objective=WakeSleep(), epochs=1, progress=False)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: WakeSleep(1), "num_particles must be at least 2, found 1"),
        (lambda: WakeSleep(0, "sleep"), "num_particles must be at least 1, found 0"),
        (lambda: WakeSleep(5, "dream"), "unknown guide 'dream'"),
    ],
    ids=["one", "none", "guide"],
)
def test_mistakes_are_sentences(make, words):
    with pytest.raises(ValueError, match=words):
        make()
