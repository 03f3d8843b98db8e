"""Makes every figure and number of docs/decoders.md: trains small models, right and wrong ones, and compares them."""

import io
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyro.distributions as dist
import torch
import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

from pyro_vae import VAE, conv_vae, evaluate, fit, mlp_vae
from pyro_vae._support import files
from pyro_vae._support.ranges import Constraint, constraints
from pyro_vae.cli.running import run_command
from pyro_vae.data.sources import DataSet, default_root, load_data
from pyro_vae.evaluation import checkerboard, sample_quality
from pyro_vae.inference.predictive import interpolate_latents
from pyro_vae.likelihoods import Bernoulli, Normal
from pyro_vae.training import resolve_device
from pyro_vae.transforms import Binarize, Scale

LATENT_DIM, NUM_NEIGHBORS, MOST_ROWS = 20, 5, 3000
Numbers = dict[str, Any]


class GreyBernoulli(Bernoulli):
    """A deliberate mistake that the guide warns of: cross-entropy on grey levels, as if they were bits."""

    @property
    def data_range(self) -> Constraint:
        """The interval [0, 1]."""
        return constraints.unit_interval

    def distribution(self, *params: Tensor) -> dist.TorchDistribution:
        """Bernoulli that does not check its values."""
        return dist.Bernoulli(logits=params[0], validate_args=False)


def main(
    data: Annotated[
        str, typer.Option(help="mnist, which the guide is about; or digits, which takes seconds.")
    ] = "mnist",
    data_root: Annotated[
        Path | None, typer.Option(help="Folder of downloaded data sets. [default: $PYRO_VAE_DATA, or data]")
    ] = None,
    epochs: Annotated[int, typer.Option(help="Number of passes over all rows for every model.")] = 5,
    out: Annotated[Path, typer.Option(help="Folder for decoders-figures.json and images/decoders/.")] = Path("docs"),
    device: Annotated[str, typer.Option(help="auto (CUDA or XPU if available), cpu, cuda or xpu.")] = "auto",
    seed: Annotated[int, typer.Option(help="Seeds the weights, the order of rows and the noise.")] = 0,
) -> None:
    """Makes the figures and numbers of the guide to decoders."""
    resolve_device(device)
    started = time.perf_counter()
    loaded = load_data(data, data_root or default_root())
    if loaded.bounds is None or loaded.x_train.dim() != 3 or loaded.y_test is None:
        raise ValueError(f"the guide needs grey images with labels, and {loaded.name} has other data: use --data mnist")
    files.check_writable(out / "images" / "decoders")
    rows = unit_interval(loaded, seed)
    torch.manual_seed(seed)
    z = torch.randn(MOST_ROWS, LATENT_DIM)

    def train(vae: VAE, title: str) -> VAE:
        begun = time.perf_counter()
        fit(vae, rows.x_train, epochs=epochs, seed=seed, device=device, progress=False)
        print(f"{title:34} {time.perf_counter() - begun:6.1f} s", flush=True)
        return vae

    models = {title: train(build(title, rows, seed), title) for title in BUILDERS}
    convolutions, checkers = train_convolutions(rows, z, epochs=epochs, seed=seed, device=device)
    checkers["fully_connected"] = {
        "initialised": checkerboard(build("bits", rows, seed).mean_at(z)),
        "trained": checkerboard(models["bits"].mean_at(z)),
    }
    classifier = train_classifier(rows, seed)
    numbers = {
        "settings": {
            "data": loaded.name,
            "epochs": epochs,
            "seed": seed,
            "latent_dim": LATENT_DIM,
            "num_train": len(rows.x_train),
            "num_test": len(rows.x_test),
            "num_dims": num_dims(rows),
            "share_of_black_pixels": float((rows.x_test == 0).double().mean()),
        },
        "constants": constants(num_dims(rows)),
        "checkerboard": checkers,
        "last_layers": last_layers(models, rows, z),
        "grey_pixels": grey_pixels(models, rows),
        "variance": variances(models, seed),
        "sample_quality": qualities(models, convolutions, rows, z, classifier, seed),
        "interpolation": interpolations(models["bits"], rows, classifier, seed),
    }
    folder = out / "images" / "decoders"
    draw_decoder(models, rows, folder / "decoder.png")
    draw_functions(folder / "functions.png")
    draw_checkerboard(convolutions, checkers, folder / "checkerboard.png")
    draw_last_layers(models, rows, z, folder / "last-layers.png")
    draw_draws(models, rows, folder / "draws.png")
    draw_samples(models, convolutions, rows, z, numbers["sample_quality"], folder / "samples.png")
    draw_interpolation(models["bits"], rows, folder / "interpolation.png")
    files.write_json(rounded(numbers), out / "decoders-figures.json")
    print(f"{out / 'decoders-figures.json'} and {folder}, in {time.perf_counter() - started:.0f} s")


# Data and models


def unit_interval(data: DataSet, seed: int) -> DataSet:
    """The images with grey levels from 0 to 1, in random order, as files may have hard images at the end."""
    low, high = data.bounds or (0.0, 1.0)
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for x, y in ((data.x_train, data.y_train), (data.x_test, data.y_test)):
        order = torch.randperm(len(x), generator=generator)
        parts.append(((x[order].float() - low) / (high - low), None if y is None else y[order]))
    (x_train, y_train), (x_test, y_test) = parts
    return DataSet(data.name, x_train, x_test, (0.0, 1.0), y_train, y_test)


def num_dims(data: DataSet) -> int:
    """Number of pixels D."""
    return math.prod(data.x_train.shape[1:])


# Name: the arguments of mlp_vae, given the number of pixels.
BUILDERS: Mapping[str, Callable[[int], Mapping[str, Any]]] = {
    "bits": lambda num_dims: {"likelihood": Bernoulli(), "transform": Binarize(0, 1)},
    "grey": lambda num_dims: {"likelihood": GreyBernoulli()},
    "sigmoid": lambda num_dims: {"likelihood": Normal(link="sigmoid")},
    "tanh_scaled": lambda num_dims: {"likelihood": Normal(link="tanh"), "transform": Scale(0, 1, onto=(-1, 1))},
    "tanh_wrong": lambda num_dims: {"likelihood": Normal(link="tanh")},
    "scale_one": lambda num_dims: {"likelihood": Normal(1.0, link="sigmoid")},
    # Mean squared error plus KL, up to a factor and a constant.
    "averaged": lambda num_dims: {"likelihood": Normal(math.sqrt(num_dims / 2), link="sigmoid")},
}
# The guide's names for the compared last layers.
LAST_LAYERS = {
    "sigmoid": "sigmoid, σ learned",
    "tanh_scaled": "tanh on [−1, 1], σ learned",
    "tanh_wrong": "tanh on [0, 1], σ learned",
    "scale_one": "sigmoid, σ = 1",
    "averaged": "averaged squared error",
}


def build(title: str, data: DataSet, seed: int) -> VAE:
    """A fully connected VAE with one of the likelihoods."""
    torch.manual_seed(seed)
    return mlp_vae(tuple(data.x_train.shape[1:]), LATENT_DIM, **BUILDERS[title](num_dims(data)))


def train_convolutions(
    data: DataSet, z: Tensor, *, epochs: int, seed: int, device: str
) -> tuple[dict[str, dict[str, Tensor]], Numbers]:
    """Trains the two convolutional decoders, and measures their grid during training.

    Returns:
        For each the means at the latents ``z`` of the initialised, early and trained decoder; and the numbers.
    """
    means: dict[str, dict[str, Tensor]] = {}
    numbers: Numbers = {"data": checkerboard(data.x_test)}
    num_rows = len(data.x_train)
    parts = [slice(0, num_rows // 8), slice(num_rows // 8, num_rows // 4), slice(num_rows // 4, num_rows // 2)]
    parts += [slice(num_rows // 2, num_rows), *[slice(0, num_rows)] * (epochs - 1)]
    for upsample in ("transposed", "nearest"):
        begun = time.perf_counter()
        untrained = [build_convolutional(data, upsample, seed + i) for i in range(5)]
        vae, grids = untrained[0], [checkerboard(each.mean_at(z)) for each in untrained]
        stages, seen = [vae.mean_at(z).cpu()], [0]
        for i, part in enumerate(parts):
            x = data.x_train[part]
            schedule = "cosine" if i == len(parts) - 1 else "constant"
            fit(vae, x, epochs=1, schedule=schedule, seed=seed + i, device=device, progress=False)
            stages.append(vae.mean_at(z).cpu())
            seen.append(seen[-1] + len(x))
        curve = [checkerboard(x) for x in stages]
        print(f"{'conv, ' + upsample:34} {time.perf_counter() - begun:6.1f} s", flush=True)
        means[upsample] = {"initialised": stages[0], "early": stages[1], "trained": stages[-1]}
        numbers[upsample] = {
            "initialised": curve[0],
            "initialised_lowest_of_five_seeds": min(grids),
            "initialised_highest_of_five_seeds": max(grids),
            "early": curve[1],
            "early_images_seen": seen[1],
            "one_epoch": curve[4],
            "trained": curve[-1],
            "images_seen": seen,
            "curve": curve,
            "elbo": evaluate(vae, data.x_test)["elbo"],
        }
    return means, numbers


def build_convolutional(data: DataSet, upsample: Any, seed: int) -> VAE:
    """A convolutional VAE for bits."""
    torch.manual_seed(seed)
    return conv_vae(
        tuple(data.x_train.shape[1:]),
        LATENT_DIM,
        likelihood=Bernoulli(),
        transform=Binarize(0, 1),
        channels=(16, 32),
        upsample=upsample,
    )


def train_classifier(data: DataSet, seed: int, epochs: int = 3) -> nn.Sequential:
    """A small classifier, for distances in its last hidden layer, which mean more than those of pixels."""
    begun = time.perf_counter()
    assert data.y_train is not None
    assert data.y_test is not None
    torch.manual_seed(seed)
    layers = (nn.Linear(num_dims(data), 256), nn.ReLU(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10))
    classifier = nn.Sequential(nn.Flatten(), *layers)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-3)
    for _ in range(epochs):
        for index in torch.randperm(len(data.x_train)).split(128):
            loss = nn.functional.cross_entropy(classifier(data.x_train[index]), data.y_train[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    classifier.requires_grad_(requires_grad=False)
    print(f"{'classifier':34} {time.perf_counter() - begun:6.1f} s", flush=True)
    return classifier


# Numbers


def constants(num_dims: int) -> Numbers:
    """The values of the formulas."""
    hidden = math.sqrt(num_dims / 2)
    return {
        "normal_constant_at_scale_1": num_dims / 2 * math.log(2 * math.pi),
        "normal_constant_at_scale_0.1": num_dims / 2 * math.log(2 * math.pi * 0.1**2),
        "scale_that_averaging_means": hidden,
        "beta_that_averaging_means": num_dims / 2,
        # A KL with weight 0.00025 next to squared error averaged over 3 × 64 × 64 numbers.
        "scale_of_weight_0.00025_at_3x64x64": math.sqrt(0.00025 * 3 * 64 * 64 / 2),
        "bernoulli_mass_at_0.5": mass(0.5),
        "bernoulli_mass_at_0.01": mass(0.01),
    }


def mass(p: float) -> float:
    """The integral of p^x (1 - p)^(1 - x) over x from 0 to 1."""
    return 0.5 if p == 0.5 else (2 * p - 1) / (math.log(p) - math.log1p(-p))


def last_layers(models: Mapping[str, VAE], data: DataSet, z: Tensor) -> Numbers:
    """Likelihoods with several links and widths, compared on the same grey pixels."""
    x = data.x_test
    numbers: Numbers = {
        # The best possible sigmoid for pixels scaled to [-1, 1]: exact where they are positive, 0 elsewhere.
        "least_error_of_sigmoid_on_minus_one_to_one": float((2 * x - 1).clamp(max=0).square().mean().sqrt()),
        "error_of_the_mean_image": float((x - data.x_train.mean(0)).square().mean().sqrt()),
    }
    learned = scale_of(models["sigmoid"], z)
    for title in LAST_LAYERS:
        vae = models[title]
        metrics = evaluate(vae, x)
        reconstructions, means = vae.reconstruct(x).cpu(), vae.mean_at(z).cpu()
        numbers[title] = {
            "scale": scale_of(vae, z),
            "weight_of_kl_beside_learned_scale": (scale_of(vae, z) / learned) ** 2,
            "elbo": metrics["elbo"],
            "elbo_se": metrics["elbo_se"],
            "rate": metrics["rate"],
            "active_units": metrics["active_units"],
            "root_mean_squared_error": float((reconstructions - x).square().mean().sqrt()),
            "sharpness": sharpness(means) / sharpness(x),
            "share_of_means_outside": float(((means < 0) | (means > 1)).float().mean()),
            "lowest_mean": float(means.min()),
        }
    return numbers


def scale_of(vae: VAE, z: Tensor) -> float:
    """The standard deviation of a pixel given z, in the units of the data."""
    slope = float(vae.transform.inverse(torch.ones(1)) - vae.transform.inverse(torch.zeros(1)))
    return slope * float(vae.decode(z[:1]).stddev.mean())


def sharpness(x: Tensor) -> float:
    """Mean squared difference of neighbouring pixels."""
    return float(x.diff(dim=-1).square().mean() + x.diff(dim=-2).square().mean())


def grey_pixels(models: Mapping[str, VAE], data: DataSet) -> Numbers:
    """Cross-entropy on grey pixels, and the missing constants."""
    x, vae = data.x_test, models["grey"]
    metrics, on_bits = evaluate(vae, x), evaluate(models["bits"], x)
    with torch.no_grad():
        logits = vae.decoder.network(vae.encode(x).mean)[:, 0].cpu().double()
    with_constant = dist.ContinuousBernoulli(logits=logits).log_prob(x.double())
    without = dist.Bernoulli(logits=logits, validate_args=False).log_prob(x.double())
    entropy = dist.Bernoulli(probs=x.double()).entropy()
    draws = vae.posterior_predictive(x[:MOST_ROWS])[0].cpu()
    return {
        "elbo": metrics["elbo"],
        "rate": metrics["rate"],
        "elbo_on_bits": on_bits["elbo"],
        "rate_on_bits": on_bits["rate"],
        "least_cross_entropy": float(entropy.flatten(1).sum(1).mean()),
        "cross_entropy": -float(without.flatten(1).sum(1).mean()),
        "constants_left_out": float((with_constant - without).flatten(1).sum(1).mean()),
        "share_of_grey_pixels_in_data": share_of_grey(x),
        "share_of_grey_pixels_in_draws": share_of_grey(draws),
        "share_of_grey_pixels_in_means": share_of_grey(vae.reconstruct(x).cpu()),
    }


def share_of_grey(x: Tensor) -> float:
    """Share of the pixels that are neither almost black nor almost white."""
    return float(((x > 0.05) & (x < 0.95)).float().mean())


def variances(models: Mapping[str, VAE], seed: int) -> Numbers:
    """The variance of draws from p(x), and the part that comes from the means."""
    numbers: Numbers = {}
    for title in ("bits", "sigmoid"):
        torch.manual_seed(seed)
        draws = models[title].sample(5000).var(0).sum()
        means = models[title].sample(5000, mean=True).var(0).sum()
        numbers[title] = {"draws": float(draws), "means": float(means), "share_of_means": float(means / draws)}
    return numbers


def qualities(
    models: Mapping[str, VAE],
    convolutions: Mapping[str, Mapping[str, Tensor]],
    data: DataSet,
    z: Tensor,
    classifier: nn.Sequential,
    seed: int,
) -> Numbers:
    """Samples of each model compared with held-out images, in pixels and in a classifier's features."""
    assert data.y_test is not None
    rows = min(MOST_ROWS, len(data.x_test))
    torch.manual_seed(seed)
    real, z = data.x_test[:rows], z[:rows]
    sets = {
        "training_images": data.x_train[:rows],
        "bits_means": models["bits"].mean_at(z),
        "bits_draws": models["bits"].decode(z).sample(),
        "bits_means_at_0.7_z": models["bits"].mean_at(0.7 * z),
        "transposed_means": convolutions["transposed"]["trained"][:rows],
        "nearest_means": convolutions["nearest"]["trained"][:rows],
        "sigmoid_means": models["sigmoid"].mean_at(z),
        "sigmoid_draws": models["sigmoid"].decode(z).sample(),
        "scale_one_means": models["scale_one"].mean_at(z),
        "scale_one_draws": models["scale_one"].decode(z).sample(),
        "averaged_means": models["averaged"].mean_at(z),
    }
    spaces = {"pixels": None, "features": classifier[:-1]}
    right = classifier(data.x_test).argmax(1) == data.y_test
    return {
        "num_rows": rows,
        "num_neighbors": NUM_NEIGHBORS,
        "accuracy_of_classifier": float(right.double().mean()),
        "expected_coverage": 1 - math.prod((rows - i) / (2 * rows - i) for i in range(1, NUM_NEIGHBORS + 1)),
        **{
            title: {
                space: sample_quality(real, x.cpu(), num_neighbors=NUM_NEIGHBORS, features=features)
                for space, features in spaces.items()
            }
            for title, x in sets.items()
        },
    }


def interpolations(vae: VAE, data: DataSet, classifier: nn.Sequential, seed: int) -> Numbers:
    """Halfway points between different digits: their distance from the origin, and their similarity to data."""
    rows = min(MOST_ROWS, len(data.x_test) // 2)
    a, b = data.x_test[:rows], data.x_test[rows : 2 * rows]
    assert data.y_test is not None
    different = data.y_test[:rows] != data.y_test[rows : 2 * rows]
    a, b = a[different], b[different]
    ends = torch.stack([vae.encode(a).mean, vae.encode(b).mean])
    torch.manual_seed(seed)
    drawn = torch.randn(2, 10_000, vae.latent_dim)
    halfway = {
        "ends": vae.reconstruct(a),
        "cross_fade": (a + b) / 2,
        "linear": vae.interpolate(a, b, steps=3)[1],
        "spherical": vae.interpolate(a, b, steps=3, path="spherical")[1],
    }
    return {
        "num_pairs": len(a),
        "length_of_encoded": float(ends.norm(dim=-1).mean()),
        "length_halfway_linear": float(ends.mean(0).norm(dim=-1).mean()),
        "length_halfway_spherical": float(
            interpolate_latents(ends[0], ends[1], 3, path="spherical")[1].norm(dim=-1).mean()
        ),
        "length_of_prior_draws": float(drawn.norm(dim=-1).mean()),
        "length_halfway_between_prior_draws": float(drawn.mean(0).norm(dim=-1).mean()),
        **{
            title: {
                "share_the_classifier_is_sure_of": share_sure(classifier, x.cpu()),
                "sharpness": sharpness(x.cpu()) / sharpness(data.x_test),
                **sample_quality(
                    data.x_train[:MOST_ROWS], x.cpu(), num_neighbors=NUM_NEIGHBORS, features=classifier[:-1]
                ),
            }
            for title, x in halfway.items()
        },
    }


def share_sure(classifier: nn.Sequential, x: Tensor) -> float:
    """Share of the images for which the classifier gives a digit a probability above 0.9."""
    return float((classifier(x).softmax(1).amax(1) > 0.9).double().mean())


def rounded(numbers: Any) -> Any:
    """The numbers to six digits."""
    if isinstance(numbers, dict):
        return {name: rounded(value) for name, value in numbers.items()}
    if isinstance(numbers, list):
        return [rounded(value) for value in numbers]
    return float(f"{numbers:.6g}") if isinstance(numbers, float) else numbers


# Figures


def mosaic(grid: Sequence[Sequence[Tensor]] | Tensor, line: float = 0.5) -> np.ndarray:
    """Rows of images as one picture with a line between them."""
    rows = [torch.cat([nn.functional.pad(x.cpu(), (0, 1, 0, 1), value=line) for x in row], dim=1) for row in grid]
    return torch.cat(rows)[:-1, :-1].numpy()


def show(
    axes: Axes,
    grid: Sequence[Sequence[Tensor]] | Tensor,
    *,
    title: str = "",
    row_labels: Sequence[str] = (),
    bounds: tuple[float, float] = (0, 1),
) -> Any:
    """Draws rows of images into axes."""
    picture = mosaic(grid, sum(bounds) / 2)
    image = axes.imshow(picture, cmap="gray", vmin=bounds[0], vmax=bounds[1], interpolation="nearest")
    tile = (picture.shape[0] + 1) / len(grid)
    axes.set_xticks([])
    axes.set_yticks([tile * (i + 0.5) - 1 for i in range(len(row_labels))], list(row_labels))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=10)
    return image


def save(figure: Figure, path: Path) -> None:
    """Writes a small picture: 256 colours suffice for grey tiles and a few lines."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, bbox_inches="tight")
    with files.replacing(path) as temporary, Image.open(buffer) as image:
        image.convert("RGB").quantize(256).save(temporary, optimize=True)


def draw_decoder(models: Mapping[str, VAE], data: DataSet, path: Path) -> None:
    """From z to the parameters of p(x|z) to draws, for two likelihoods."""
    x = data.x_test[:1]
    figure = Figure(figsize=(11, 3.7), layout="constrained")
    panels = figure.subplots(2, 4, width_ratios=(1, 1.4, 1.25, 4))
    headings = {"bits": ("Bernoulli", "probability of a 1"), "sigmoid": ("Normal", "mean")}
    for (title, (name, heading)), row in zip(headings.items(), panels, strict=True):
        vae = models[title]
        z = vae.encode(x).mean
        torch.manual_seed(0)
        p_x = vae.decode(z)
        show(row[0], [[x[0]]], title="an image x")
        row[0].set_ylabel(name, fontsize=11)
        row[1].bar(range(1, vae.latent_dim + 1), z[0].cpu().numpy(), color="tab:blue")
        row[1].axhline(0, color="black", linewidth=0.6)
        row[1].set(title="the mean of q(z|x)", xlabel="latent", ylim=(-3.4, 3.4))
        row[1].title.set_fontsize(10)
        spread = "" if title == "bits" else f" (σ = {scale_of(vae, z):.2f})"
        image = show(row[2], [[p_x.mean[0]]], title=f"{heading}{spread}")
        figure.colorbar(image, ax=row[2], fraction=0.05, ticks=(0, 0.5, 1))
        show(row[3], [[p_x.sample()[0] for _ in range(4)]], title="four draws x ~ p(x|z)")
    save(figure, path)


def draw_functions(path: Path) -> None:
    """Links, and minus the logarithm of the densities behind common losses."""
    figure = Figure(figsize=(11, 3.1), layout="constrained")
    links, squared, entropy, masses = figure.subplots(1, 4)

    raw = torch.linspace(-4, 4, 200)
    links.axhspan(0, 1, color="tab:green", alpha=0.12, linewidth=0)
    for name, y in {"linear": raw, "sigmoid": raw.sigmoid(), "tanh": raw.tanh(), "exp": raw.exp()}.items():
        links.plot(raw, y, label=name)
    links.text(-3.9, 0.86, "pixels in [0, 1]", fontsize=8, color="tab:green", va="top")
    links.set(title="links", xlabel="raw output", ylabel="parameter", ylim=(-2, 3))
    links.legend(frameon=False, fontsize=8, loc="upper left")

    error = torch.linspace(-1, 1, 400)
    for scale in (0.1, 0.3, 1.0):
        squared.plot(error, -dist.Normal(0.0, scale).log_prob(error), label=f"σ = {scale:g}")
    squared.set(title="−log Normal", xlabel="x − μ", ylabel="nats", ylim=(-2, 8))
    squared.legend(frameon=False, fontsize=8)

    p = torch.linspace(0.002, 0.998, 500)
    for x, colour in ((0.0, "tab:blue"), (0.3, "tab:red"), (1.0, "tab:orange")):
        entropy.plot(p, -x * p.log() - (1 - x) * (1 - p).log(), color=colour, label=f"x = {x:g}")
    least = float(dist.Bernoulli(0.3).entropy())
    entropy.plot([0.3], [least], "o", color="tab:red", markersize=4)
    entropy.annotate(f"never below {least:.2f}", (0.3, least), (0.2, 2.1), fontsize=8, arrowprops={"arrowstyle": "->"})
    entropy.set(title="cross-entropy", xlabel="π", ylabel="nats", ylim=(0, 4))
    entropy.legend(frameon=False, fontsize=8, loc="upper center")

    masses.plot(p, [mass(float(value)) for value in p], color="tab:red")
    masses.axhline(1, color="black", linewidth=0.8, linestyle=":")
    masses.text(0.02, 0.98, "a density has 1", fontsize=8, va="top")
    masses.set(title=r"$\int_0^1 \pi^x (1-\pi)^{1-x}\,dx$", xlabel="π", ylim=(0, 1.05))
    for axes in (links, squared, entropy, masses):
        axes.title.set_fontsize(10)
        axes.grid(alpha=0.3)
    save(figure, path)


def draw_checkerboard(convolutions: Mapping[str, Mapping[str, Tensor]], numbers: Numbers, path: Path) -> None:
    """Both decoders before, early in and after training, and the measure over training."""
    figure = Figure(figsize=(10.5, 4.3), layout="constrained")
    panels = figure.subplots(2, 4, width_ratios=(1, 1, 1, 1.7))
    names = {"transposed": "transposed convolution", "nearest": "repeat, then convolve"}
    for row, (upsample, name) in zip(panels, names.items(), strict=True):
        early = f"{numbers[upsample]['early_images_seen']:,} images"
        for axes, stage, title in zip(
            row, ("initialised", "early", "trained"), ("initialised (stretched)", early, "trained"), strict=False
        ):
            x = convolutions[upsample][stage][:4]
            bounds = (float(x.min()), float(x.max())) if stage == "initialised" else (0.0, 1.0)
            excess = round(100 * numbers[upsample][stage], 1) + 0.0
            show(axes, x.unflatten(0, (2, 2)), title=f"{title}: {excess:.1f} %", bounds=bounds)
        row[0].set_ylabel(name, fontsize=10)
    curve = figure.add_subplot(panels[0, 0].get_gridspec()[:, 3])
    for axes in panels[:, 3]:
        axes.remove()
    curve.set_yscale("symlog", linthresh=0.1)
    for upsample, name in names.items():
        seen, values = numbers[upsample]["images_seen"], numbers[upsample]["curve"]
        curve.plot(range(len(values)), [100 * value for value in values], "o-", markersize=4, label=name)
        curve.set_xticks(range(len(seen)), [f"{number:,}" for number in seen], rotation=60, fontsize=8)
    curve.axhline(100 * numbers["data"], color="black", linewidth=0.8, linestyle=":", label="the data")
    curve.yaxis.set_major_formatter("{x:g} %")
    curve.set(xlabel="images trained on", title="checkerboard(E[x|z])")
    curve.title.set_fontsize(10)
    curve.legend(frameon=False, fontsize=9)
    curve.grid(alpha=0.3)
    save(figure, path)


def draw_last_layers(models: Mapping[str, VAE], data: DataSet, z: Tensor, path: Path) -> None:
    """Reconstructions, and means at draws from the prior, of right and wrong last layers."""
    x = data.x_test[:9]
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = [list(x), *(list(models[title].reconstruct(x)) for title in LAST_LAYERS)]
    show(left, rows, row_labels=["data", *LAST_LAYERS.values()], title="reconstructions of held-out images")
    rows = [list(data.x_train[:9]), *(list(models[title].mean_at(z[:9])) for title in LAST_LAYERS)]
    show(right, rows, title="means E[x|z] at z ~ p(z)")
    save(figure, path)


def draw_draws(models: Mapping[str, VAE], data: DataSet, path: Path) -> None:
    """Data, means and draws under three likelihoods."""
    x = data.x_test[:12]
    labels, rows = ["data"], [list(x)]
    torch.manual_seed(0)
    for title, name in {"bits": "Bernoulli on bits", "grey": "Bernoulli on grey", "sigmoid": "Normal"}.items():
        z = models[title].encode(x).mean
        labels += [f"{name}: mean", f"{name}: draw"]
        rows += [list(models[title].mean_at(z)), list(models[title].decode(z).sample().clamp(0, 1))]
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    show(figure.add_subplot(), rows, row_labels=labels)
    save(figure, path)


def draw_samples(
    models: Mapping[str, VAE],
    convolutions: Mapping[str, Mapping[str, Tensor]],
    data: DataSet,
    z: Tensor,
    quality: Numbers,
    path: Path,
) -> None:
    """Means at draws from the prior, with their sample_quality in the classifier's features."""
    z = z[:30]
    sets = {
        "training_images": ("training images", data.x_train),
        "bits_means": ("fully connected", models["bits"].mean_at(z)),
        "bits_means_at_0.7_z": ("fully connected, z × 0.7", models["bits"].mean_at(0.7 * z)),
        "nearest_means": ("repeat, then convolve", convolutions["nearest"]["trained"]),
        "scale_one_means": ("fully connected, Normal σ = 1", models["scale_one"].mean_at(z)),
    }
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    for axes, (title, (name, x)) in zip(figure.subplots(1, len(sets)), sets.items(), strict=True):
        show(axes, x[:30].reshape(6, 5, *x.shape[1:]), title=name)
        measured = quality[title]["features"]
        axes.set_xlabel(
            f"precision {measured['precision']:.2f}, recall {measured['recall']:.2f}\n"
            f"density {measured['density']:.2f}, coverage {measured['coverage']:.2f}",
            fontsize=9,
        )
    save(figure, path)


def draw_interpolation(vae: VAE, data: DataSet, path: Path) -> None:
    """Three ways from one image to another."""
    steps, labels = 11, data.y_test
    assert labels is not None
    first = {digit: labels.tolist().index(digit) for digit in (1, 6, 7, 9)}
    a, b = data.x_test[[first[7], first[1]]], data.x_test[[first[9], first[6]]]
    t = torch.linspace(0, 1, steps).reshape(-1, 1, 1, 1)
    ways = {
        "pixels": (1 - t) * a + t * b,
        "linear in z": vae.interpolate(a, b, steps),
        "spherical in z": vae.interpolate(a, b, steps, path="spherical"),
    }
    rows = [list(way[:, pair]) for pair in range(2) for way in ways.values()]
    figure = Figure(figsize=(8, 4.3), layout="constrained")
    show(figure.add_subplot(), rows, row_labels=[*ways, *ways])
    save(figure, path)


if __name__ == "__main__":
    run_command(main)
