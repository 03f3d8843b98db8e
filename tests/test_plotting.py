"""Figures: what is drawn is what was given."""

import io
import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from pyro_vae import plotting


def pixels(figure):
    return np.asarray(figure.axes[0].images[0].get_array())


def test_one_row_has_a_place_among_latents():
    (points,) = plotting.plot_latents(torch.tensor([[1.0, 2.0, 3.0]])).axes[0].collections
    assert points.get_offsets().tolist() == [[1.0, 2.0]]


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


def test_a_notebook_shows_a_figure_with_all_that_is_in_it():
    figure = plotting.plot_grid(torch.rand(2, 3, 8, 8), row_labels=("a long label of a row", "another"))
    picture = Image.open(io.BytesIO(figure._repr_png_()))
    picture.load()
    tiles = figure.axes[0].get_window_extent()
    assert picture.format == "PNG"
    assert picture.width > tiles.width + 80  # labels lie beside the tiles


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


def test_a_traversal_has_a_row_for_each_latent():
    x = torch.arange(6.0).reshape(3, 2, 1, 1).expand(3, 2, 4, 4)
    figure = plotting.plot_traversal(x)
    assert pixels(figure)[5 * 2, 5] == 5  # the third latent's second step
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["z[0]", "z[1]", "z[2]"]
    named = plotting.plot_traversal(x, ["slant", "width", "loop"])
    assert named.axes[0].get_yticklabels()[1].get_text() == "width"


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
    assert all(tick == round(tick) for tick in figure.axes[0].get_xticks())  # there is no epoch one and a half


def test_reconstructions_put_data_above_their_means_and_draws():
    x = torch.rand(3, 2, 2)
    figure = plotting.plot_reconstructions(x, x + 1, x + 2, bounds=(0, 3))
    picture = pixels(figure)
    np.testing.assert_allclose(picture[3:5, :2], x[0] + 1)
    assert next(t.get_text() for t in figure.axes[0].get_yticklabels()) == "data x"


def shares(axes, name):
    """The heights of the bars of data or samples."""
    return [bar.get_height() for bar in axes.containers[("data", "samples").index(name)]]


def test_columns_show_shares_and_say_what_lies_beyond():
    rng = np.random.default_rng(0)
    data = pd.DataFrame({"x": rng.uniform(size=200), "s": pd.Categorical(["b", "a"] * 100, ["c", "b", "a"])})
    samples = pd.DataFrame({"x": [*rng.uniform(0.1, 0.9, 70), *[50.0] * 20, *[-9.0] * 10], "s": ["b"] * 100})
    figure = plotting.plot_columns(data, samples)
    number, level = figure.axes
    assert sum(shares(number, "data")) == pytest.approx(1)
    assert sum(shares(number, "samples")) == pytest.approx(0.7)
    assert [text.get_text() for text in number.texts] == ["samples: ← 10.0% below, 20.0% above →"]
    assert shares(level, "data") == [0.5, 0.5]
    assert shares(level, "samples") == [1, 0]
    assert [label.get_text() for label in level.get_xticklabels()] == ["b", "a"]
    assert number.get_ylabel() == "share of entries"


def test_samples_a_little_beyond_the_data_are_within_the_bins():
    data, samples = pd.DataFrame({"x": np.linspace(0, 1, 50)}), pd.DataFrame({"x": np.linspace(-0.1, 1.2, 50)})
    axes = plotting.plot_columns(data, samples).axes[0]
    assert sum(shares(axes, "samples")) == pytest.approx(1)
    assert not axes.texts


def test_dates_and_many_levels_and_many_columns_are_drawn(tmp_path):
    days = pd.date_range("2020-01-01", periods=60)
    columns = {
        "date": days,
        "text": days.strftime("%d.%m.%Y"),
        "of objects": list(days.date),
        "a $ sign": np.arange(60.0),
    }
    columns["ward"] = [f"ward {i % 20}" for i in range(60)]
    columns["gone"] = np.nan
    frame = pd.DataFrame({**columns, **{f"more {i}": np.arange(60) % 3 for i in range(60)}})
    figure = plotting.plot_columns(frame, frame)
    plotting.save_figure(figure, tmp_path / "columns.png")
    for axes in figure.axes[:3]:
        assert type(axes.xaxis.get_major_formatter()).__name__ == "ConciseDateFormatter"
    ward = figure.axes[4]
    assert ward.get_xticklabels()[-1].get_text() == "(9 others)"
    assert sum(shares(ward, "data")) == pytest.approx(1)
    assert figure.get_supxlabel() == "the first 40 of 66 columns"


def test_labels_are_shown_where_they_lie_apart():
    labels = torch.arange(300) % 3
    middles = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])[labels]
    points = torch.cat([20 * torch.randn(300, 2), middles + 0.05 * torch.randn(300, 2)], 1)  # the widest tell nothing
    shown = plotting.plot_latents(points, labels).axes[0].collections[:6:2]
    groups = [np.asarray(part.get_offsets()) for part in shown]
    within = max(group.std(0).max() for group in groups)
    between = min(np.linalg.norm(a.mean(0) - b.mean(0)) for a, b in itertools.combinations(groups, 2))
    assert between > 8 * within


def test_draws_stand_in_the_places_of_their_means():
    means = torch.arange(5.0).reshape(5, 1, 1).expand(5, 2, 2)
    picture = plotting.plot_means_and_draws(means, 10 + means).axes[0].images[0].get_array()
    assert picture.shape == (2 * 3 - 1, 7 * 3 - 1)
    for place in range(5):
        row, column = divmod(place, 3)
        assert picture[3 * row, 3 * column] == place
        assert picture[3 * row, 3 * (column + 4)] == 10 + place


def test_the_legend_of_columns_hides_nothing_that_is_written_in_them():
    data = pd.DataFrame({"a": np.linspace(0, 1, 50), "b": ["x", "y"] * 25})
    samples = pd.DataFrame({"a": np.linspace(-4, 5, 50), "b": ["x", "y"] * 25})
    figure = plotting.plot_columns(data, samples)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    legend, renderer = figure.legends[0].get_window_extent(), canvas.get_renderer()
    written = [text for axes in figure.axes for text in [axes.title, *axes.texts] if text.get_text()]
    assert any("below" in text.get_text() for text in written)
    assert not any(legend.overlaps(text.get_window_extent(renderer)) for text in written)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["data", "samples"]
