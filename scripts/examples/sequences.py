"""Swings of a pendulum: a deep Markov model forecasts each from its first part."""

import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from matplotlib.figure import Figure

sys.path.append(str(Path(__file__).parents[1]))
from pyro_vae import Elbo, deep_markov_model, fit, plotting
from pyro_vae.cli.running import run_command
from pyro_vae.likelihoods import Normal

STEPS, SHOWN = 30, 12


def pendulums(num_rows: int = 600) -> torch.Tensor:
    """Angles over time of pendulums with friction, pushed at random and seen with noise: ``(N, T, 1)``."""
    torch.manual_seed(0)
    angle, speed, seen = 2.5 * torch.rand(num_rows) - 1.25, torch.randn(num_rows), []
    for _ in range(STEPS):
        for _ in range(6):
            speed = speed - 0.03 * (9.81 * angle.sin() + 0.15 * speed) + 0.02 * torch.randn(num_rows)
            angle = angle + 0.03 * speed
        seen.append(angle + 0.05 * torch.randn(num_rows))
    return torch.stack(seen, 1)[..., None]


def main(
    out: Annotated[Path, typer.Option(help="The picture to write.")] = Path("sequences.png"),
    epochs: Annotated[int, typer.Option(help="Number of passes over the data.")] = 40,
) -> None:
    """Trains on rows of all lengths, then draws forecasts of new ones."""
    x = pendulums()
    lengths = torch.randint(SHOWN, STEPS + 1, (len(x),))
    model = deep_markov_model((STEPS, 1), latent_dim=4, likelihood=Normal(scale=0.1), recurrent_dim=48)
    warm = Elbo(kl="auto", kl_warmup=0.3)  # else each step is explained by itself before the dynamics are learned
    rows = {"x": x[6:], "lengths": lengths[6:]}
    fit(model, rows, objective=warm, epochs=epochs, batch_size=60, learning_rate=1e-2, progress=False)

    shown = {"x": x[:6], "lengths": torch.full((6,), SHOWN)}
    drawn = model.impute(shown, 100, num_particles=200)[..., 0]
    figure, ahead = Figure(figsize=(8, 4), layout="constrained"), range(SHOWN, STEPS + 1)
    for row, axes in enumerate(figure.subplots(2, 3, sharex=True, sharey=True).flat):
        low, middle, high = drawn[:, row, SHOWN - 1 :].quantile(torch.tensor([0.05, 0.5, 0.95]), 0)
        axes.fill_between(ahead, low, high, color="C0", alpha=0.25, label="nine in ten forecasts")
        axes.plot(ahead, middle, color="C0", label="their middle")
        axes.plot(range(1, SHOWN + 1), x[row, :SHOWN, 0], "k.-", label="what the model is shown")
        axes.plot(range(SHOWN + 1, STEPS + 1), x[row, SHOWN:, 0], "k.", alpha=0.4, label="how it went on")
    figure.supxlabel("time step")
    figure.supylabel("angle")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    plotting.save_figure(figure, out)


if __name__ == "__main__":
    run_command(main)
