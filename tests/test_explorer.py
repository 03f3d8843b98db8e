"""The page to look around a pair: its numbers are the pair's own, and a browser shows them."""

import shutil
import threading

import numpy as np
import pytest
import torch

from pyro_vae import conditional_vae, fit, ladder_vae, mlp_vae
from pyro_vae.data.sources import load_data
from pyro_vae.likelihoods import Bernoulli
from pyro_vae.transforms import Binarize

pytest.importorskip("bokeh")
from bokeh.document import Document
from bokeh.models import ColumnDataSource, DataTable, Slider

from pyro_vae.explorer import Neighbours, Page, Plane, serve
from pyro_vae.explorer.colours import colours_of
from pyro_vae.explorer.views import Curves, Pictures, rgba, view_of


@pytest.fixture(scope="module")
def digits():
    data = load_data("digits")
    torch.manual_seed(0)
    vae = mlp_vae((8, 8), latent_dim=4, hidden_dims=(32,), likelihood=Bernoulli(), transform=Binarize(0, 16))
    fit(vae, data.x_train[:500], epochs=5, progress=False, compile=False)
    return vae, data.x_test[:100], data.y_test[:100].tolist()


def test_the_plane_is_that_of_the_principal_directions():
    torch.manual_seed(0)
    z = torch.randn(200, 5, dtype=torch.float64) @ torch.diag(
        torch.tensor([3.0, 2.0, 1.0, 0.5, 0.1], dtype=torch.float64)
    )
    plane = Plane.through(z)
    values = torch.linalg.eigvalsh(torch.cov(z.mT)).flip(0)
    assert torch.allclose(plane.points(z).var(0), values[:2])
    assert plane.share == pytest.approx(float(values[:2].sum() / values.sum()))
    points = torch.randn(7, 2, dtype=torch.float64)
    assert torch.allclose(plane.points(plane.latents(points)), points)


def test_a_plane_of_one_latent_is_a_line():
    plane = Plane.through(torch.tensor([[1.0], [3.0]]))
    assert torch.allclose(plane.latents(torch.tensor([[0.5, 9.0]])), 2 + 0.5 * plane.directions[:1].T)
    assert plane.share == 1


def test_a_map_of_neighbours_leads_to_the_nearest_row_and_back():
    z = torch.tensor([[0.0, 0.0, 1.0], [5.0, 0.0, 0.0], [0.0, 7.0, 0.0]])
    found = Neighbours(z, torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    assert torch.equal(found.latents(torch.tensor([[0.9, 0.2], [-3.0, 0.1]])), z[[1, 0]])
    assert torch.equal(found.points(z + 0.1), found.places)


def test_umap_keeps_clusters_apart():
    pytest.importorskip("umap")
    torch.manual_seed(0)
    of_cluster = torch.arange(3).repeat_interleave(30)
    found = Neighbours.of(10 * torch.eye(6)[of_cluster] + torch.randn(90, 6))
    apart = torch.cdist(found.places, found.places).fill_diagonal_(torch.inf)
    assert torch.equal(of_cluster[apart.argmin(1)], of_cluster)


def test_a_page_takes_another_map(digits):
    vae, x, _ = digits
    page = Page(vae, x, plane=lambda z: Neighbours(z, z[:, :2]))
    document = Document()
    page(document)
    (source,) = (one for one in document.select({"type": ColumnDataSource}) if "a" in one.data)
    assert np.allclose(source.data["b"], page.means[:, 1])
    assert torch.equal(page.plane.latents(page.means[4:5, :2]), page.means[4:5])


def test_numbers_of_a_page_are_those_of_the_pair(digits):
    vae, x, _ = digits
    page = Page(vae, x)
    z = torch.tensor([0.3, -1.0, 0.2, 0.9])
    assert torch.allclose(page.mean_at(z, 3), vae.mean_at(z[None])[0])
    assert torch.allclose(page.blend(2, 5, 0.25), vae.interpolate(x[2:3], x[5:6], steps=5)[1, 0], atol=1e-5)
    assert torch.allclose(page.means, vae.encode(x).mean)


def test_latents_of_several_levels_are_moved_one_at_a_time():
    torch.manual_seed(0)
    vae = ladder_vae((8, 8), latent_dims=(3, 2), likelihood=Bernoulli(), hidden_dims=(8,), transform=Binarize(0, 16))
    x = torch.randint(0, 17, (6, 8, 8)).float()
    page = Page(vae, x, site="z_2")
    middle = vae.middle(vae.batch(x[:1]))
    z = torch.tensor([2.0, -1.0])
    assert torch.allclose(page.mean_at(z, 0), vae.mean_at(middle | {"z_2": z[None]})[0])


def test_a_conditional_model_decodes_with_the_labels_of_the_chosen_row():
    torch.manual_seed(0)
    vae = conditional_vae((4,), 2, given={"labels": 3}, likelihood=Bernoulli(), hidden_dims=(8,))
    x, labels = torch.randint(0, 2, (6, 4)).float(), torch.tensor([0, 1, 2, 0, 1, 2])
    page = Page(vae, {"x": x, "labels": labels})
    z = torch.zeros(2)
    assert torch.allclose(page.mean_at(z, 2), vae.mean_at(z[None], given={"labels": torch.tensor([2])})[0])
    assert not torch.allclose(page.mean_at(z, 2), page.mean_at(z, 1))


def press(page):
    """A document that the page has filled, and its parts."""
    document = Document()
    page(document)
    [root] = document.roots
    points = next(
        source for source in root.select({"type": ColumnDataSource}) if "colour" in source.data and "a" in source.data
    )
    return root, points, {slider.title: slider for slider in root.select({"type": Slider})}


def test_choosing_a_row_moves_the_sliders_to_it(digits):
    vae, x, y = digits
    page = Page(vae, x, colours={"labels": y})
    root, points, sliders = press(page)
    points.selected.indices = [7]
    for place in page.moved:
        assert sliders[f"z[{place}]"].value == pytest.approx(float(page.means[7, place]))
    told = " ".join(part.text for part in root.select({"name": "told"}))
    assert "row 7" in told
    assert f"labels: {y[7]}" in told
    assert "log evidence" in told


def test_rows_of_a_table_are_shown_as_one(tmp_path):
    rng = np.random.default_rng(0)
    lines = [f"{h:.1f},{k}" for h, k in zip(rng.normal(170, 9, 60), rng.choice(["a", "b"], 60), strict=True)]
    (tmp_path / "t.csv").write_text("height,kind\n" + "\n".join(lines))
    data = load_data(tmp_path / "t.csv", tmp_path)
    vae = mlp_vae((2,), latent_dim=2, likelihood=data.schema.likelihood(), hidden_dims=(8,))
    root, _, _ = press(Page(vae, data.x_test, schema=data.schema))
    tables = list(root.select({"type": DataTable}))
    assert [table.source.data["column"] for table in tables] == [["height", "kind"]] * 2
    [shown] = [table.source.data["row"] for table in tables if "row" in table.source.data]
    assert shown == [f"{float(data.x_test[0, 0]):.4g}", ["a", "b"][int(data.x_test[0, 1])]]


def test_pictures_are_upright_and_in_their_colours():
    row = torch.tensor([[0.0, 16.0], [8.0, torch.nan]])
    packed = rgba(row, (0, 16)).view(np.uint8).reshape(2, 2, 4)
    assert packed[1, 0, :3].tolist() == [0, 0, 0]  # from the bottom up
    assert packed[1, 1, :3].tolist() == [255, 255, 255]
    assert packed[0, 0, :3].tolist() == [128, 128, 128]
    assert packed[0, 1, :3].tolist() == [255, 204, 204]  # missing
    colour = torch.tensor([1.0, 0.0, 0.5])[:, None, None].expand(3, 2, 2)
    assert rgba(colour, (0, 1)).view(np.uint8)[0, :3].tolist() == [255, 0, 128]


@pytest.mark.parametrize(("shape", "kind"), [((5, 8, 8), Pictures), ((5, 3, 8, 8), Pictures), ((5, 20), Curves)])
def test_rows_are_shown_as_what_they_are(shape, kind):
    assert type(view_of(("row",), torch.rand(shape))) is kind


def test_numbers_of_many_kinds_are_on_a_scale_and_texts_are_grey():
    numbers, legend = colours_of([float(n) for n in range(30)])
    assert len(set(numbers)) == 30
    assert "0" in legend
    assert "29" in legend
    assert set(colours_of([f"t{n}" for n in range(30)])[0]) == {"#bbbbbb"}


def test_latents_that_are_kinds_are_refused():
    from pyro_vae import cluster_vae

    vae = cluster_vae((4,), 2, num_clusters=3, likelihood=Bernoulli(), hidden_dims=(8,))
    with pytest.raises(ValueError, match="is discrete, but the explorer needs continuous ones"):
        Page(vae, torch.randint(0, 2, (6, 4)).float(), site="y")


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs a browser")
def test_a_browser_shows_what_is_under_the_pointer(digits):
    playwright = pytest.importorskip("playwright.sync_api")
    vae, x, y = digits
    started, stop = threading.Event(), {}

    def run():
        import asyncio

        asyncio.set_event_loop(asyncio.new_event_loop())
        server = serve(Page(vae, x, colours={"labels": y}, title="digits"), port=0)
        stop["server"] = server
        stop["loop"] = server.io_loop
        started.set()
        server.io_loop.start()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert started.wait(20)
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1300, "height": 900})
        page.goto(f"http://localhost:{stop['server'].port}/")
        page.wait_for_selector("text=log evidence", timeout=30000)
        before = page.screenshot()
        page.mouse.move(300, 400)
        page.wait_for_timeout(800)
        assert page.screenshot() != before
        assert page.get_by_text("row 0").is_visible()
        assert page.get_by_text("log evidence").is_visible()
        browser.close()
    stop["loop"].add_callback(stop["loop"].stop)
    thread.join(10)
