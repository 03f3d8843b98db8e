"""Topics are found again, and words that are counted out of a known total have the multinomial's probabilities."""

import numpy as np
import pytest
import torch
from examples import topics as example
from scipy import stats
from test_captured import check
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae import check_pair, evaluate, fit, load, mlp_vae, topic_model
from pyro_vae.distributions import Multinomial as MultinomialDistribution
from pyro_vae.evaluation import log_evidence
from pyro_vae.likelihoods import Bernoulli, Multinomial, NegativeBinomial, Normal, Poisson
from pyro_vae.networks import MLP
from pyro_vae.priors import NormalMixture, SoftmaxDirichlet
from pyro_vae.programs import Decoder, Encoder
from pyro_vae.vae.topics import TopicModel


def corpus(num_rows=400, num_topics=4, num_words=60, length=80):
    """Documents of a latent Dirichlet allocation, and the topics that they were drawn of."""
    topics = torch.distributions.Dirichlet(torch.full((num_words,), 0.1)).sample((num_topics,))
    shares = torch.distributions.Dirichlet(torch.full((num_topics,), 0.2)).sample((num_rows,))
    return MultinomialDistribution((shares @ topics).log(), torch.tensor(float(length))).sample(), topics, shares


# The likelihood.


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("batch_shape", [(), (3,), (2, 3)], ids=str)
def test_the_multinomial_has_scipys_numbers(batch_shape):
    raw, totals = torch.randn(*batch_shape, 1, 6), torch.randint(0, 30, batch_shape)
    p_x = Multinomial().for_event((6,))(raw, total_count=totals)
    assert (p_x.batch_shape, p_x.event_shape) == (batch_shape, (6,))
    x = p_x.sample()
    assert torch.equal(x.sum(-1), totals.double())
    probs = raw.squeeze(-2).softmax(-1).numpy()
    expected = stats.multinomial(totals.numpy(), probs / probs.sum(-1, keepdims=True))
    np.testing.assert_allclose(p_x.log_prob(x), expected.logpmf(x.numpy()), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(p_x.mean, totals.numpy()[..., None] * probs)
    np.testing.assert_allclose(p_x.variance, totals.numpy()[..., None] * probs * (1 - probs))


@pytest.mark.usefixtures("float64")
def test_its_probability_sums_to_one_and_draws_follow_it():
    raw = torch.randn(1, 3)
    p_x = Multinomial().for_event((3,))(raw, total_count=4)
    every = torch.tensor([[i, j, 4 - i - j] for i in range(5) for j in range(5 - i)], dtype=torch.float64)
    probabilities = p_x.log_prob(every).exp()
    assert float(probabilities.sum()) == pytest.approx(1, abs=1e-12)
    draws = p_x.sample(torch.Size([4000]))
    counts, expected = (draws[:, None] == every).all(-1).sum(0), 4000 * probabilities
    often = expected > 5
    counts, expected = (torch.cat([n[often], n[~often].sum()[None]]) for n in (counts.double(), expected))
    assert stats.chisquare(counts, expected).pvalue > 1e-3


def test_draws_have_their_totals_and_nothing_of_no_probability_and_read_no_values():
    logits = torch.randn(3, 7).index_fill(1, torch.tensor([0, 2, 6]), -torch.inf)
    drawn = make_fx(lambda logits, totals: MultinomialDistribution(logits, totals, validate_args=False).sample())(
        logits, torch.tensor([3.0, 0.0, 50.0])
    )
    totals = torch.tensor([1.0, 2000.0, 1e6])  # others than the graph was made with
    counts = drawn(logits, totals)
    assert torch.equal(counts.sum(-1), totals)
    assert float(counts[:, [0, 2, 6]].max()) == 0


def test_it_is_right_at_extreme_logits_with_finite_gradients():
    raw = torch.tensor([[-80.0, 0.0, 80.0]]).requires_grad_()
    log_prob = Multinomial().for_event((3,))(raw).log_prob(torch.tensor([1.0, 2.0, 0.0]))
    assert log_prob.item() == pytest.approx(-160 - 2 * 80 + np.log(3), rel=1e-6)
    (gradient,) = torch.autograd.grad(log_prob, raw)
    assert gradient.isfinite().all()


def test_totals_are_those_given_or_typical_of_the_first_batch():
    vae = mlp_vae((5,), 2, likelihood=Multinomial(), hidden_dims=())
    x = torch.arange(40.0).reshape(8, 5).round()
    assert torch.equal(vae.sample(3).sum(-1), torch.ones(3))
    fit(vae, x, epochs=1, batch_size=8, progress=False)
    assert torch.equal(vae.sample(3).sum(-1), x.sum(-1).mean().round().expand(3))
    assert vae.sample(3, given={"total_count": torch.tensor([0, 1, 9])}).sum(-1).tolist() == [0, 1, 9]
    data = {"x": x, "total_count": x.sum(-1)}
    assert torch.equal(vae.posterior_predictive(data, 2).sum(-1), x.sum(-1).expand(2, 8))
    torch.testing.assert_close(vae.reconstruct(data).sum(-1), x.sum(-1))
    assert evaluate(vae, data) == evaluate(vae, x)


def test_the_captured_step_of_a_multinomial_never_touches_the_host():
    x = torch.randint(0, 9, (12, 5)).float()
    check(lambda: mlp_vae((5,), 2, hidden_dims=(4,), likelihood=Multinomial()), lambda: {"x": x})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Multinomial().for_event((2, 3)).raw_shape((2, 3)), r"rows of one dimension, found .*\(2, 3\)"),
        (lambda: Multinomial()(torch.zeros(2, 1, 3), mask=torch.ones(2, 3)), "so none of them can be missing"),
        (lambda: Multinomial()(torch.zeros(2, 1, 3), total_count=torch.ones(3)), "one number for each of 2 rows"),
        (lambda: Multinomial().check_arguments(total_count=torch.tensor([3.0, -1.0])), "for each row; found -1"),
        (lambda: Multinomial().check_arguments(total_count=2.5), "found 2.5"),
        (lambda: Multinomial().check_arguments(total_count=torch.ones(2, 2)), r"found shape \(2, 2\)"),
    ],
)
def test_a_multinomial_that_makes_no_sense_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


# Topics.


@pytest.mark.parametrize("likelihood", [None, Poisson()], ids=["multinomial", "poisson"])
def test_known_topics_are_found_again(likelihood):
    torch.manual_seed(3)
    x, topics, shares = corpus()
    data = {"x": x, "size_factor": x.sum(-1)} if likelihood else x
    model = topic_model([f"word {i}" for i in range(60)], 4, likelihood=likelihood, concentration=0.5)
    fit(model, data, epochs=60, batch_size=100, learning_rate=0.02, progress=False)
    found = model.word_probabilities()
    torch.testing.assert_close(found.sum(-1), torch.ones(4))
    cosines = torch.nn.functional.cosine_similarity(found[:, None], topics, dim=-1)
    nearest = cosines.argmax(1)
    assert sorted(nearest.tolist()) == [0, 1, 2, 3]
    assert float(cosines.amax(1).min()) > 0.9
    best = [f"word {i}" for i in found[0].argsort(descending=True)[:5]]
    assert model.topics(5)[0] == best
    assert f"word {int(topics[nearest[0]].argmax())}" in best
    documents = model.shares(data)
    torch.testing.assert_close(documents.sum(-1), torch.ones(400))
    clear = shares.amax(-1) > 0.9
    assert float((nearest[documents[clear].argmax(-1)] == shares[clear].argmax(-1)).double().mean()) > 0.95


def test_the_prior_is_nearly_a_dirichlet():
    for concentration in (2.0, 10.0):
        shares = SoftmaxDirichlet(20, concentration)().sample(torch.Size([20_000])).softmax(-1)
        exact = torch.distributions.Dirichlet(torch.full((20,), concentration))
        torch.testing.assert_close(shares.mean(0), exact.mean, rtol=0.05, atol=0)
        torch.testing.assert_close(shares.std(0), exact.stddev, rtol=0.25 if concentration == 2 else 0.1, atol=0)


@pytest.mark.usefixtures("float64")
def test_the_evidence_of_two_topics_is_the_integral_over_their_shares():
    torch.manual_seed(1)
    model = topic_model(6, 2, hidden_dims=(8,))
    with torch.no_grad():
        model.decoder.network.topics.weight.normal_()
    x = torch.randint(0, 4, (5, 6)).double()
    # Of two latents, only the difference matters: it is normal, with twice the variance of either.
    points = torch.linspace(-8, 8, 4001)
    spread = model.prior.scale[0] * 2**0.5
    weights = (
        torch.distributions.Normal(0.0, spread).log_prob(points * spread) + (points[1] - points[0]).log() + spread.log()
    )
    shares = torch.stack([(points * spread).sigmoid(), (-points * spread).sigmoid()], -1)
    with torch.no_grad():
        logits = model.decoder.network.of_shares(shares).squeeze(-2).log_softmax(-1)
    ways = torch.lgamma(x.sum(-1) + 1) - torch.lgamma(x + 1).sum(-1)
    exact = (ways[:, None] + x @ logits.T + weights).logsumexp(-1)
    found = log_evidence(model, x, num_particles=20_000)
    torch.testing.assert_close(found.log_evidence.double(), exact, rtol=0, atol=0.05)


def test_every_tool_takes_it(tmp_path):
    x, _, _ = corpus(num_rows=60)
    words = [f"w{i}" for i in range(60)]
    model = topic_model(words, 4, hidden_dims=(8,), prior=NormalMixture(4, 3))
    fit(model, x, epochs=2, batch_size=20, progress=False)
    contract = check_pair(model, x)
    assert contract, contract
    refused = {name for name, text in contract.tools.items() if text.startswith("refused")}
    assert not refused
    assert model.encode(x).event_shape == (4,)
    assert model.posterior_predictive({"x": x, "total_count": x.sum(-1)}, 2).shape == (2, 60, 60)
    model.save(tmp_path)
    again = load(tmp_path)
    assert evaluate(again, x, seed=1) == evaluate(model, x, seed=1)
    assert again.topics(3) == model.topics(3)
    assert again.vocabulary == tuple(words)


@pytest.mark.usefixtures("compiled_if_exhaustive")
def test_a_compiled_step_has_the_numbers_of_the_programs():
    x, _, _ = corpus(num_rows=60)
    histories = []
    for compile in (False, True):
        torch.manual_seed(0)
        model = topic_model(60, 4, hidden_dims=(8,))
        histories.append(fit(model, x, epochs=2, batch_size=20, progress=False, seed=0, compile=compile))
    assert histories[1].attrs["execution"] == "compiled"
    assert histories[1]["elbo"].tolist() == pytest.approx(histories[0]["elbo"].tolist(), rel=1e-4)


def test_counts_that_were_not_made_are_left_out_with_a_likelihood_of_single_counts():
    x, _, _ = corpus(num_rows=60)
    data = {"x": x.clone(), "size_factor": x.sum(-1)}
    data["x"][:30, :5] = float("nan")
    model = topic_model(60, 4, likelihood=NegativeBinomial(total_count="network"), missing="nan", hidden_dims=(8,))
    fit(model, data, epochs=1, batch_size=20, progress=False)
    filled = model.impute(data, 2, num_particles=10)
    assert torch.equal(filled[:, :, 5:], data["x"][:, 5:].expand(2, -1, -1))
    assert filled.isfinite().all()
    with pytest.raises(ValueError, match="none of them can be missing"):
        evaluate(topic_model(60, 4, missing="nan", hidden_dims=(8,)), data["x"])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: topic_model(5, 1), "latent_dim must be at least 2 topics, found 1"),
        (lambda: topic_model(5, 2, concentration=0.0), "concentration must be a positive number, found 0"),
        (lambda: topic_model(5, 2).topics(6), "num_words must be from 1 to 5, found 6"),
        (
            lambda: topic_model(5, 2, likelihood=Bernoulli()),
            "needs a likelihood for counts, such as Multinomial, found Bernoulli",
        ),
        (
            lambda: topic_model(5, 2, likelihood=Normal()),
            "needs a likelihood for counts, such as Multinomial, found Normal",
        ),
        (
            lambda: TopicModel(
                SoftmaxDirichlet(2),
                Decoder(MLP((2,), (1, 5)), Multinomial(), (5,)),
                Encoder(MLP((5,), (2, 2)), topic_model(5, 2).encoder.posterior, 2),
            ),
            "must be a TopicDecoder, found MLP",
        ),
        (
            lambda: TopicModel(
                SoftmaxDirichlet(2), topic_model(5, 2).decoder, topic_model(5, 2).encoder, vocabulary=["a", "b"]
            ),
            "the vocabulary has 2 words and the rows 5 counts",
        ),
    ],
)
def test_mistakes_are_sentences(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_the_example_draws_its_picture(tmp_path):
    example.main(out=tmp_path / "topics.png", epochs=2)
    assert (tmp_path / "topics.png").stat().st_size > 5000
