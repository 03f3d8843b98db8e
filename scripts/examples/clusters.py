"""Digits without labels: a VAE that finds ten clusters among them."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits

sys.path.append(str(Path(__file__).parents[1]))
from pyro_vae import VAE, cluster_vae, fit, plotting
from pyro_vae.cli.models import matched
from pyro_vae.cli.running import run_command
from pyro_vae.likelihoods import Normal
from pyro_vae.priors import StandardNormal
from pyro_vae.transforms import Scale


@dataclass(frozen=True)
class Trained:
    """A model, and what it was trained on.

    Args:
        vae: The VAE with ten clusters.
        plain: The same networks with a standard normal prior, before there were clusters.
        x: The digits.
        names: The digit that each cluster is named after.
        accuracies: The share of digits in the right cluster, and of k-means on pixels and on the plain VAE's codes.
    """

    vae: Any
    plain: VAE
    x: torch.Tensor
    names: torch.Tensor
    accuracies: tuple[float, ...]


def trained(seed: int, epochs: int) -> Trained:
    """Trains without clusters, lets them start where k-means finds them, and trains on."""
    digits: Any = load_digits()
    x, y = torch.tensor(digits.images, dtype=torch.float32), torch.tensor(digits.target)
    torch.manual_seed(seed)
    parts = {"likelihood": Normal(link="sigmoid"), "transform": Scale(0, 16), "hidden_dims": (256,)}
    vae = cluster_vae((8, 8), latent_dim=10, num_clusters=10, **parts)
    plain = VAE(StandardNormal(10), vae.decoder, vae.encoder, vae.transform)  # the same networks
    options = {"epochs": epochs, "batch_size": 100, "seed": seed, "progress": False}
    fit(plain, x, **options, schedule="constant")
    starts: Any = {"n_init": 10, "random_state": seed}
    k_means = [KMeans(10, **starts).fit(rows) for rows in (x.flatten(1), plain.encode(x).mean)]
    vae.start_at(x, seed=seed)
    fit(vae, x, **options)
    found = [vae.predict_cluster(x).argmax(-1), *(torch.tensor(means.labels_).long() for means in k_means)]
    accuracies = tuple(matched(clusters, y)[0] for clusters in found)
    print("seed {}: {:.1%}, k-means on pixels {:.1%}, on codes {:.1%}".format(seed, *accuracies), flush=True)
    return Trained(vae, plain, x, matched(found[0], y)[1], accuracies)


def main(
    out: Annotated[Path, typer.Option(help="The picture to write.")] = Path("clusters.png"),
    epochs: Annotated[int, typer.Option(help="Times every row is seen, before and with clusters.")] = 100,
    seed: Annotated[int, typer.Option(help="Of the weights and the noise.")] = 0,
) -> None:
    """Trains a VAE with ten clusters on digits, beside k-means on pixels and on a plain VAE's codes."""
    found = trained(seed, epochs)
    order = found.names.argsort()  # clusters in the order of the digits that they are named after
    middles = found.plain.mean_at(found.vae.prior.components().mean[order].detach())
    shares = found.vae.predict_cluster(found.x).T[order] + 1e-6
    members = torch.stack([found.x[of_cluster.multinomial(11)] for of_cluster in shares])
    grid = torch.cat([middles[:, None], torch.full((10, 1, 8, 8), 8.0), members], 1)
    right, k_means, _ = found.accuracies
    title = f"each cluster's middle, and rows in it: {right:.1%} right (k-means {k_means:.1%})"
    plotting.save_figure(plotting.plot_grid(grid, title=title), out)


if __name__ == "__main__":
    run_command(main)
