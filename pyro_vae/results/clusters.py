"""Clusters without labels."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_vae import VAE, cluster_vae, fit
from pyro_vae.data.sources import load_data
from pyro_vae.evaluation.matching import matched
from pyro_vae.likelihoods import Normal
from pyro_vae.priors import StandardNormal
from pyro_vae.results.row import Row, spread
from pyro_vae.transforms import Scale

TITLE = "Clusters of digits"
ABOUT = """A VAE with a Gaussian mixture as prior, the cluster summed out exactly, on scikit-learn's digits: ten
clusters, matched with digits by the Hungarian method, ten seeds. For comparison: k-means on pixels, and on the codes
of a plain VAE with the same networks, where the clusters start. Full: MNIST, with hidden layers of 500, 500 and 2,000
as in the paper, 100 epochs. Published, on MNIST, pretrained: 94.46% (Jiang et al., *Variational Deep Embedding*,
2017)."""
DIGITS = 1


def rows(*, short: bool, root: Path) -> list[Row]:
    """Accuracies in per cent."""
    found = (trained(seed, epochs=100) if short else trained_on_mnist(root, seed) for seed in range(10))
    accuracies = [accuracies for *_, accuracies in found]
    names = ("mixture VAE", "k-means on pixels", "k-means on a plain VAE's codes")
    return [
        {"": name, "rows in the right cluster, %": spread([100 * accuracy for accuracy in found])}
        for name, found in zip(names, zip(*accuracies, strict=True), strict=True)
    ]


def trained(seed: int, epochs: int) -> tuple[Tensor, Tensor, tuple[float, ...]]:
    """Centres of clusters, digits of each, and the share in the right one, also for k-means on pixels and on codes."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    x, y = torch.tensor(digits.images, dtype=torch.float32), torch.tensor(digits.target)
    torch.manual_seed(seed)
    parts = {"likelihood": Normal(link="sigmoid"), "transform": Scale(0, 16), "hidden_dims": (256,)}
    vae = cluster_vae((8, 8), latent_dim=10, num_clusters=10, **parts)
    return compared(vae, x, y, epochs=epochs, seed=seed)


def trained_on_mnist(root: Path, seed: int, epochs: int = 100) -> tuple[Tensor, Tensor, tuple[float, ...]]:
    """The same on all of MNIST, as in the paper."""
    data: Any = load_data("mnist", root)
    torch.manual_seed(seed)
    parts = {"likelihood": Normal(link="sigmoid"), "transform": Scale(0, 255), "hidden_dims": (500, 500, 2000)}
    vae = cluster_vae((28, 28), latent_dim=10, num_clusters=10, **parts)
    x, y = torch.cat([data.x_train, data.x_test]), torch.cat([data.y_train, data.y_test])
    return compared(vae, x, y, epochs=epochs, seed=seed)


def compared(vae: Any, x: Tensor, y: Tensor, *, epochs: int, seed: int) -> tuple[Tensor, Tensor, tuple[float, ...]]:
    """Trains a plain VAE, starts the clusters at its codes, trains them, and counts rows in the right cluster."""
    from sklearn.cluster import KMeans

    size = vae.prior.components().mean.shape[-1]
    plain = VAE(StandardNormal(size), vae.decoder, vae.encoder, vae.transform)  # the same networks
    options = {"epochs": epochs, "batch_size": 100, "seed": seed, "progress": False}
    fit(plain, x, **options, schedule="constant")
    starts: Any = {"n_init": 10, "random_state": seed}
    k_means = [KMeans(10, **starts).fit(rows) for rows in (x.flatten(1), plain.encode(x).mean)]
    vae.start_at(x, seed=seed)
    fit(vae, x, **options)
    found = [vae.predict_cluster(x).argmax(-1), *(torch.tensor(means.labels_).long() for means in k_means)]
    accuracies = tuple(matched(clusters, y)[0] for clusters in found)
    print("seed {}: {:.1%}, k-means on pixels {:.1%}, on codes {:.1%}".format(seed, *accuracies), flush=True)
    order = matched(found[0], y)[1].argsort()  # clusters in the order of their digits
    shares = vae.predict_cluster(x).T[order] + 1e-6
    members = torch.stack([x[of_cluster.multinomial(11)] for of_cluster in shares])
    middles = plain.mean_at(vae.prior.components().mean[order].detach())
    return middles, members, accuracies
