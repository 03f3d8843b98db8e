"""Figures: what is drawn is what was given."""

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_vae import plotting


def pixels(figure):
    return np.asarray(figure.axes[0].images[0].get_array())


def test_tiles_lie_in_reading_order_with_a_line_between():
    grid = torch.arange(6.0).reshape(2, 3, 1, 1).expand(2, 3, 4, 5)
    picture = pixels(plotting.plot_grid(grid, bounds=(0, 10)))
    assert picture.shape == (2 * 5 - 1, 3 * 6 - 1)
    for row in range(2):
        for column in range(3):
            tile = picture[5 * row : 5 * row + 4, 6 * column : 6 * column + 5]
            assert (tile == 3 * row + column).all()
    assert (picture[4] == 5).all()


def test_colour_images_keep_their_channels_and_odd_channels_lie_side_by_side():
    colour = torch.rand(1, 1, 3, 4, 5)
    np.testing.assert_allclose(pixels(plotting.plot_grid(colour, bounds=(0, 1))), colour[0, 0].permute(1, 2, 0))
    two = torch.rand(1, 1, 2, 4, 5)
    np.testing.assert_allclose(pixels(plotting.plot_grid(two)), torch.cat([two[0, 0, 0], two[0, 0, 1]], 1))


@pytest.mark.parametrize("shape", [(7, 4), (7, 3, 5), (7, 3, 5, 4), (1, 8, 8), (7,)])
def test_samples_of_any_shape_are_drawn(shape, tmp_path):
    plotting.save_figure(plotting.plot_samples(torch.rand(shape), title="a title"), tmp_path / "a" / "samples.png")
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["samples.png"]


def test_latents_in_more_than_two_dimensions_are_drawn_along_their_principal_directions():
    points = torch.randn(500, 4) * torch.tensor([0.1, 5.0, 0.1, 2.0])
    axes = plotting.plot_latents(points).axes[0]
    drawn = np.asarray(axes.collections[0].get_offsets())
    centred = points - points.mean(0)
    np.testing.assert_allclose(np.abs(drawn[:, 0]), centred[:, 1].abs(), atol=0.5)
    np.testing.assert_allclose(np.abs(drawn[:, 1]), centred[:, 3].abs(), atol=0.5)
    share = points[:, 1].var() / points.var(0).sum()
    assert f"{share:.0%}" in axes.get_xlabel()


def test_latents_have_a_colour_for_each_label():
    labels = torch.tensor([3, 5, 3, 9])
    axes = plotting.plot_latents(torch.randn(4, 2), labels).axes[0]
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["3", "5", "9"]
    assert len(np.asarray(axes.collections[0].get_offsets())) == 2
    one = plotting.plot_latents(torch.randn(4, 1)).axes[0]
    assert (np.asarray(one.collections[0].get_offsets())[:, 1] == 0).all()


def test_the_second_latent_rises_upwards_in_the_manifold():
    grid = torch.arange(4.0).reshape(2, 2, 1, 1)  # [second, first]
    picture = pixels(plotting.plot_manifold(grid))
    assert picture[0, 0] == 2
    assert picture[-1, -1] == 1


def test_curves_show_training_and_validation():
    history = pd.DataFrame(
        {"epoch": [1, 2, 3], "elbo": [-3.0, -2, -1], "reconstruction": [-2.0, -1, -0.5], "kl": [1.0, 1, 0.5]}
    )
    figure = plotting.plot_curves(history)
    assert [a.get_title() for a in figure.axes] == ["ELBO", "reconstruction", "KL"]
    assert figure.axes[0].lines[0].get_ydata().tolist() == [-3, -2, -1]
    for term in ("elbo", "reconstruction", "kl"):
        history[f"validation_{term}"] = 7.0
    assert plotting.plot_curves(history).axes[2].lines[1].get_ydata().tolist() == [7, 7, 7]


def test_reconstructions_put_data_above_their_means_and_draws():
    x = torch.rand(3, 2, 2)
    figure = plotting.plot_reconstructions(x, x + 1, x + 2, bounds=(0, 3))
    picture = pixels(figure)
    np.testing.assert_allclose(picture[3:5, :2], x[0] + 1)
    assert next(t.get_text() for t in figure.axes[0].get_yticklabels()) == "data x"
