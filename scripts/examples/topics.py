"""A made-up news corpus, whose five topics a topic model recovers from counts of words alone."""

import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from matplotlib.figure import Figure

sys.path.append(str(Path(__file__).parents[1]))
from pyro_vae import fit, plotting, topic_model
from pyro_vae.cli.running import run_command

TOPICS = {
    "sport": "goal match team player season coach league score",
    "politics": "vote party minister election law parliament campaign debate",
    "science": "cell star energy theory experiment data telescope gene",
    "money": "market bank price trade tax profit share debt",
    "weather": "rain wind storm cloud snow sun flood cold",
}
COMMON = ["the", "and", "said", "year", "new", "people", "day", "time", "report", "world"]
WORDS = [*COMMON, *(word for words in TOPICS.values() for word in words.split())]


def corpus(num_documents: int = 2000) -> tuple[torch.Tensor, torch.Tensor]:
    """Counts of words in documents, and the shares of the topics."""
    torch.manual_seed(0)
    own = torch.tensor([[float(word in words.split()) for word in WORDS] for words in TOPICS.values()])
    topics = 0.6 * own / 8 + 0.4 * (own.sum(0) == 0) / len(COMMON)  # each topic has its own eight words
    shares = torch.distributions.Dirichlet(torch.full((len(TOPICS),), 0.2)).sample((num_documents,))
    words = torch.distributions.Categorical(shares @ topics).sample((60,))  # a document has 60 words
    return torch.nn.functional.one_hot(words, len(WORDS)).sum(0).float(), shares


def main(
    out: Annotated[Path, typer.Option(help="The picture to write.")] = Path("topics.png"),
    epochs: Annotated[int, typer.Option(help="Number of passes over the documents.")] = 60,
) -> None:
    """Trains a topic model, and draws each topic's words, and the shares that it finds in documents."""
    x, shares = corpus()
    model = topic_model(WORDS, num_topics=len(TOPICS), concentration=0.5)
    fit(model, x, epochs=epochs, batch_size=100, learning_rate=1e-2, progress=False)

    found, weights = model.shares(x), model.word_probabilities()
    names = [list(TOPICS)[int(shares[found[:, k].topk(50).indices].mean(0).argmax())] for k in range(len(TOPICS))]
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    for k, axes in enumerate(figure.subplots(1, len(TOPICS))):
        words = model.topics(10)[k][::-1]
        colours = ["0.7" if word in COMMON else f"C{k}" for word in words]
        axes.barh(words, [float(weights[k, WORDS.index(word)]) for word in words], color=colours)
        right = torch.corrcoef(torch.stack([found[:, k], shares[:, list(TOPICS).index(names[k])]]))[0, 1]
        axes.set_title(f"topic {k + 1}\nshares like those of\n“{names[k]}”: r = {right:.2f}", fontsize=10)
    figure.suptitle("the most probable words of each topic; words of all topics in grey")
    plotting.save_figure(figure, out)


if __name__ == "__main__":
    run_command(main)
