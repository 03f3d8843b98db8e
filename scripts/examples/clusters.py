"""Digits without labels: a VAE that finds ten clusters among them."""

import sys
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


def trained(seed: int, epochs: int) -> tuple[torch.Tensor, torch.Tensor, tuple[float, ...]]:
    """Centres of clusters, digits of each, and the share in the right one, also for k-means on pixels and on codes."""
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
    order = matched(found[0], y)[1].argsort()  # clusters in the order of their digits
    shares = vae.predict_cluster(x).T[order] + 1e-6
    members = torch.stack([x[of_cluster.multinomial(11)] for of_cluster in shares])
    middles = plain.mean_at(vae.prior.components().mean[order].detach())
    return middles, members, accuracies


def main(
    out: Annotated[Path, typer.Option(help="The picture to write.")] = Path("clusters.png"),
    epochs: Annotated[int, typer.Option(help="Number of passes over the data, without and with clusters.")] = 100,
    seed: Annotated[int, typer.Option(help="Seed of the weights and the noise.")] = 0,
) -> None:
    """Trains a VAE with ten clusters on digits, and compares it with k-means on pixels and on a plain VAE's codes."""
    middles, members, accuracies = trained(seed, epochs)
    grid = torch.cat([middles[:, None], torch.full((10, 1, 8, 8), 8.0), members], 1)
    title = f"each cluster's middle, and rows in it: {accuracies[0]:.1%} right (k-means {accuracies[1]:.1%})"
    plotting.save_figure(plotting.plot_grid(grid, title=title), out)


if __name__ == "__main__":
    run_command(main)
