"""Classification with a hundred labels."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_vae import fit, semi_supervised_vae
from pyro_vae.data.sources import load_data
from pyro_vae.likelihoods import Bernoulli, Normal
from pyro_vae.results.row import Row, spread
from pyro_vae.transforms import Binarize, Scale

TITLE = "A hundred labels"
ABOUT = """Model M2 (Kingma et al., *Semi-Supervised Learning with Deep Generative Models*, 2014) on scikit-learn's
digits, with ten labels for each digit and 500 held-out rows, others for each of ten seeds, compared with the same
classifier trained on the labels alone. The whole spread is shown, as published reruns of M2 vary: 11.97% ± 1.71 on
MNIST in the paper. Full: MNIST, with its 10,000 test rows, 50 latents, one hidden layer of 500, and 200 epochs."""
DIGITS = 1


def rows(*, short: bool, root: Path) -> list[Row]:
    """Errors in per cent."""
    if short:
        errors = [trained(seed, epochs=150)[2:] for seed in range(10)]
    else:
        errors = [trained_on_mnist(root, seed) for seed in range(10)]
    ours, alone = zip(*errors, strict=True)
    return [
        {"": "M2", "held-out rows wrong, %": spread([100 * error for error in ours])},
        {"": "the labels alone", "held-out rows wrong, %": spread([100 * error for error in alone])},
    ]


def trained(seed: int, epochs: int) -> tuple[Any, Tensor, float, float]:
    """Model M2, held-out digits, and the error rates of M2 and of the labels alone."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    x, y = torch.tensor(digits.images, dtype=torch.float32), torch.tensor(digits.target)
    torch.manual_seed(seed)
    test, train = torch.randperm(len(x)).split([500, len(x) - 500])
    vae = semi_supervised_vae(
        (8, 8), 3, 10, label_weight=50, likelihood=Normal(link="sigmoid"), transform=Scale(0, 16), hidden_dims=(128,)
    )
    return vae, x[test], *compared(vae, (x[train], y[train]), (x[test], y[test]), 128, epochs=epochs, seed=seed)


def trained_on_mnist(root: Path, seed: int, epochs: int = 200) -> tuple[float, float]:
    """The same error rates on MNIST; the weight of a label is the paper's, a tenth of the rows by the labels."""
    data: Any = load_data("mnist", root)
    torch.manual_seed(seed)
    order = torch.randperm(len(data.x_train))
    options: Any = {"likelihood": Bernoulli(), "transform": Binarize(0, 255), "hidden_dims": (500,)}
    vae = semi_supervised_vae((28, 28), 50, 10, label_weight=0.1 * len(order) / 100, **options)
    train = data.x_train[order], data.y_train[order]
    return compared(vae, train, (data.x_test, data.y_test), 500, epochs=epochs, seed=seed)


def compared(
    vae: Any, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], width: int, *, epochs: int, seed: int
) -> tuple[float, float]:
    """Trains with ten labels of each class; the error rates of M2 and of a classifier trained on these labels alone."""
    from sklearn.neural_network import MLPClassifier

    x, y = train
    told = torch.cat([(y == k).nonzero()[:10, 0] for k in range(10)])
    labels = torch.full_like(y, -1).index_copy(0, told, y[told])  # -1 for a row without one
    fit(vae, {"x": x, "labels": labels}, epochs=epochs, batch_size=100, seed=seed, progress=False)
    inputs, held_out = (rows.flatten(1).float() / float(x.max()) for rows in (x[told], test[0]))
    alone = MLPClassifier((width,), max_iter=2000, random_state=seed).fit(inputs, y[told])
    error = float((vae.predict_label(test[0]).argmax(-1) != test[1]).double().mean())
    error_alone = 1 - float(alone.score(held_out, test[1]))
    print(f"seed {seed}: error {error:.1%}, with the labels alone {error_alone:.1%}", flush=True)
    return error, error_alone
