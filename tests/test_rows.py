"""Rows that are streamed are the rows that are resident, and train to the same numbers."""

import sys

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from pyro_vae import Pair, evaluate, fit, mlp_vae
from pyro_vae.data.rows import Resident, Streamed, as_rows
from pyro_vae.likelihoods import Bernoulli, Normal
from pyro_vae.training.elbo import elbo_per_row
from pyro_vae.transforms import Auto, Binarize, Standardize

CPU = torch.device("cpu")


@pytest.fixture
def memmap(tmp_path):
    """Rows in a file, and the same in memory."""
    x = np.random.default_rng(0).integers(0, 17, (200, 4, 4)).astype(np.uint8)
    np.save(tmp_path / "x.npy", x)
    return np.load(tmp_path / "x.npy", mmap_mode="r"), x


class Labelled(Dataset):
    """Items with a keyword argument beside the row."""

    def __len__(self):
        return 50

    def __getitem__(self, index):
        return {"x": torch.full((3,), float(index)), "mask": torch.tensor([True, index % 2 == 0, True])}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_streamed_batches_are_the_rows_asked_for(memmap, num_workers):
    mapped, x = memmap
    rows = as_rows(mapped, CPU, num_workers=num_workers)
    assert isinstance(rows, Streamed)
    indices = [torch.tensor([5, 199, 0]), torch.tensor([7]), torch.tensor([3, 2, 1])]
    for index, batch in zip(indices, rows.batches(indices), strict=True):
        assert batch["x"].dtype is torch.uint8
        assert np.array_equal(batch["x"].numpy(), x[index.numpy()])
    assert np.array_equal(torch.cat([b["x"] for b in rows.chunks(64)]).numpy(), x)


def test_slices_of_a_file_begin_where_they_should(memmap):
    mapped, x = memmap
    for part in (slice(150, None), slice(20, 80)):
        assert np.array_equal(next(as_rows(mapped[part], CPU, num_workers=0).chunks(500))["x"].numpy(), x[part])
    again = mapped[50:][30:60]
    assert np.array_equal(next(as_rows(again, CPU, num_workers=0).chunks(500))["x"].numpy(), x[80:110])
    assert isinstance(as_rows(mapped + 1, CPU), Resident)  # a result in memory is no file
    with pytest.raises(ValueError, match="must be stored row by row"):
        as_rows(mapped[::2], CPU)


def test_data_sets_give_rows_with_keyword_arguments():
    batch = next(as_rows(Labelled(), CPU, num_workers=0).batches([torch.tensor([4, 1])]))
    assert batch["x"].tolist() == [[4.0] * 3, [1.0] * 3]
    assert batch["mask"].tolist() == [[True, True, True], [True, False, True]]


def test_parts_of_a_data_set_are_put_together_from_its_items():
    """Subset has ``__getitems__``, which returns a list of items."""
    rows = as_rows(Subset(Labelled(), [7, 3, 20]), CPU, num_workers=0)
    batch = next(rows.chunks(2))
    assert batch["x"].tolist() == [[7.0] * 3, [3.0] * 3]
    assert batch["mask"].tolist() == [[True, False, True]] * 2
    vae = mlp_vae((3,), 1, hidden_dims=(), likelihood=Normal())
    fit(vae, Subset(Labelled(), range(40)), epochs=1, batch_size=10, num_workers=0, progress=False)


def test_a_file_in_a_mapping_is_streamed_with_what_comes_with_it(memmap):
    mapped, x = memmap
    labels = np.arange(200)
    rows = as_rows({"x": mapped, "labels": labels}, CPU, num_workers=0)
    assert isinstance(rows, Streamed)
    batch = next(rows.batches([torch.tensor([9, 4])]))
    assert np.array_equal(batch["x"], x[[9, 4]])
    assert batch["labels"].tolist() == [9, 4]
    with pytest.raises(ValueError, match="200 rows in 'x' and 3 in 'labels'"):
        as_rows({"x": mapped, "labels": labels[:3]}, CPU)


@pytest.mark.parametrize("likelihood", [Normal(), Normal(link="sigmoid"), Bernoulli()])
def test_a_transform_is_chosen_by_all_rows_in_a_file_and_as_by_resident_ones(tmp_path, likelihood):
    x = np.random.default_rng(0).normal(size=(3000, 700)).astype(np.float32)  # more than one chunk
    x[-1, -1] = 9.0
    np.save(tmp_path / "x.npy", x)
    mapped = as_rows(np.load(tmp_path / "x.npy", mmap_mode="r"), CPU, num_workers=0)
    chosen = [Auto().settle(rows.parts(), likelihood.data_range) for rows in (mapped, as_rows(x, CPU))]
    assert repr(chosen[0]) == repr(chosen[1])
    for name, value in chosen[0].state_dict().items():
        assert torch.equal(value, chosen[1].state_dict()[name])
    if isinstance(chosen[0], Standardize):
        np.testing.assert_allclose(chosen[0].loc, x.mean(0, dtype=np.float64), atol=1e-6)
        np.testing.assert_allclose(chosen[0].scale, x.std(0, dtype=np.float64), rtol=1e-6)
    else:
        assert f"low={x.min()}, high=9.0" in repr(chosen[0])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_what_is_streamed_is_evaluated_to_the_numbers_of_what_is_resident(memmap, num_workers):
    mapped, x = memmap
    vae = mlp_vae((4, 4), 2, hidden_dims=(8,), likelihood=Bernoulli(), transform=Binarize(0, 16))
    expected = evaluate(vae, x)
    assert evaluate(vae, mapped, num_workers=num_workers) == expected
    assert evaluate(vae, {"x": mapped}, num_workers=num_workers) == expected
    labelled = [Labelled()[i] for i in range(50)]
    stacked = {name: torch.stack([item[name] for item in labelled]) for name in ("x", "mask")}
    normal = mlp_vae((3,), 1, hidden_dims=(), likelihood=Normal())
    masked = evaluate(normal, stacked)
    assert evaluate(normal, Labelled(), num_workers=num_workers) == masked
    assert masked["bits_per_dim"] == pytest.approx(-masked["elbo"] / (2.5 * np.log(2)))
    reconstruction, kl = elbo_per_row(normal, normal.check(stacked))
    assert masked["elbo"] == pytest.approx(float((reconstruction - kl).double().mean()), rel=1e-6)


def test_prediction_takes_a_file_in_parts(tmp_path):
    """More rows than are prepared at once."""
    x = np.random.default_rng(0).integers(0, 2, (2500, 4)).astype(np.uint8)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    vae = mlp_vae((4,), 2, hidden_dims=(8,), likelihood=Bernoulli())
    torch.testing.assert_close(vae.reconstruct(mapped), vae.mean_at(vae.encode(x).mean))
    torch.manual_seed(0)
    drawn = vae.posterior_predictive(mapped, 2)
    torch.manual_seed(0)
    assert torch.equal(drawn, vae.posterior_predictive(x, 2))
    assert drawn.shape == (2, 2500, 4)


def test_imputation_takes_a_file_in_parts(tmp_path):
    x = np.random.default_rng(0).normal(size=(2500, 4)).astype(np.float32)
    x[::3, 1] = np.nan
    np.save(tmp_path / "x.npy", x)
    vae = mlp_vae((4,), 2, hidden_dims=(8,), likelihood=Normal(), missing="nan")
    drawn = vae.impute(np.load(tmp_path / "x.npy", mmap_mode="r"), 2, num_particles=3).numpy()
    seen = ~np.isnan(x)
    assert np.array_equal(drawn[:, seen], np.stack([x[seen]] * 2))
    assert np.isfinite(drawn).all()
    assert (drawn[0][~seen] != drawn[1][~seen]).all()
    with pytest.raises(ValueError, match=r"no entry of torch\.int64 rows can be missing"):
        vae.impute(np.ones((2, 4), np.int64))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_streamed_run_ends_at_the_numbers_of_a_resident_one(memmap, num_workers):
    mapped, x = memmap
    runs = []
    for data in (x, mapped):
        torch.manual_seed(0)
        vae = mlp_vae((4, 4), 2, hidden_dims=(8,), likelihood=Bernoulli(), transform=Binarize(0, 16))
        history = fit(
            vae,
            data[:150],
            validation_data=data[150:],
            epochs=3,
            batch_size=32,
            num_workers=num_workers,
            progress=False,
        )
        runs.append((history.drop(columns=["seconds", "rows_per_second"]), vae.state_dict()))
    assert runs[0][0].equals(runs[1][0])
    assert all(torch.equal(runs[0][1][name], tensor) for name, tensor in runs[1][1].items())


def test_a_data_set_trains_with_its_keyword_arguments():
    vae = mlp_vae((3,), 1, hidden_dims=(), likelihood=Normal(), transform="auto")
    history = fit(vae, Labelled(), epochs=2, batch_size=10, num_workers=0, progress=False)
    assert np.isfinite(history["elbo"]).all()
    assert isinstance(vae.transform, Standardize)
    assert float(vae.transform.loc[0]) == pytest.approx(24.5)


def test_mistakes_in_streamed_rows_are_found_before_training(memmap, tmp_path):
    mapped, _ = memmap
    vae = mlp_vae((4, 4), 2, likelihood=Bernoulli())
    with pytest.raises(ValueError, match="x_train has values from 0 to 16"):
        fit(vae, mapped, num_workers=0)
    gaps = np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32)
    gaps[:, 1] = np.nan
    np.save(tmp_path / "gaps.npy", gaps)
    with pytest.raises(ValueError, match=r"1 elements that are not observed in any row, the first at index \(1,\)"):
        fit(
            mlp_vae((3,), 2, likelihood=Normal(), missing="nan"),
            np.load(tmp_path / "gaps.npy", mmap_mode="r"),
            num_workers=0,
        )
    with pytest.raises(ValueError, match="200 rows, fewer than batch_size=300"):
        fit(
            mlp_vae((4, 4), 2, likelihood=Bernoulli(), transform=Binarize(0, 16)), mapped, batch_size=300, num_workers=0
        )


def test_a_mistake_far_into_the_rows_is_told_with_the_rows_that_it_is_in(tmp_path):
    x = np.zeros((3000, 700), np.float32)
    x[2990, 5] = np.nan
    np.save(tmp_path / "x.npy", x)
    vae = mlp_vae((700,), 1, hidden_dims=(), likelihood=Normal())
    for rows in (x, np.load(tmp_path / "x.npy", mmap_mode="r")):
        with pytest.raises(ValueError, match=r"x_train\[\d+:\d+\] has 1 NaN or infinite value") as refused:
            fit(vae, rows, num_workers=0)
        first = int(str(refused.value).split("[")[1].split(":")[0])
        assert f"the first at index ({2990 - first}, 5)" in str(refused.value)


# What any tool's x may be


def forms_of(x, tmp_path):
    """The same rows in every form that is taken."""
    sparse = pytest.importorskip("scipy.sparse")
    np.save(tmp_path / "forms.npy", x)
    mapped = np.load(tmp_path / "forms.npy", mmap_mode="r")
    tensor = torch.from_numpy(x)
    plain = {
        "tensor": tensor,
        "array": x,
        "list": x.tolist(),
        "DataFrame": pd.DataFrame(x),
        "sparse": sparse.csr_matrix(x),
        "memory map": mapped,
        "TensorDataset": TensorDataset(tensor),
        "data set": Subset(TensorDataset(tensor), range(len(x))),
    }
    return plain | {f"mapping of a {name}": {"x": rows} for name, rows in plain.items() if "set" not in name.lower()}


def test_rows_in_every_form_are_the_same_rows(tmp_path):
    x = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    for name, form in forms_of(x, tmp_path).items():
        rows = as_rows(form, CPU, num_workers=0)
        assert rows.num_rows == 30, name
        assert rows.num_elements == 4
        for size in (7, 30, 100):
            chunks = list(rows.chunks(size))
            assert [len(chunk["x"]) for chunk in chunks] == [min(size, 30 - start) for start in range(0, 30, size)]
            np.testing.assert_allclose(torch.cat([chunk["x"] for chunk in chunks]), x, rtol=1e-6)
        (batch,) = rows.batches([torch.tensor([4, 29, 4])])
        np.testing.assert_allclose(batch["x"], x[[4, 29, 4]], rtol=1e-6)
        assert as_rows(rows, CPU) is rows


@pytest.mark.parametrize("streamed", [False, True])
def test_arguments_have_a_row_each_or_are_the_same_for_all(memmap, streamed):
    mapped, x = memmap
    constants = {"nothing": None, "flag": True, "temperature": 0.5, "kind": "a", "weight": torch.tensor(2.0)}
    labels = pd.Series(np.arange(200), name="labels")
    rows = as_rows({"x": mapped if streamed else x, "labels": labels, **constants}, CPU, num_workers=0)
    assert isinstance(rows, Streamed if streamed else Resident)
    assert dict(rows.constants) == constants
    for batch in (*rows.batches([torch.tensor([9, 4])]), next(rows.chunks(2))):
        assert {name: batch[name] for name in constants} == constants
        assert len(batch["x"]) == len(batch["labels"]) == 2
    reference = next(iter(rows.references([torch.tensor([9, 4])])))
    assert not reference.keys() & constants.keys()
    resolved = rows.resolve(reference)
    assert resolved["labels"].tolist() == [9, 4]
    assert resolved["temperature"] == 0.5
    assert np.array_equal(resolved["x"], x[[9, 4]])
    assert [first for _, first in rows.numbered(64)] == [0, 64, 128, 192]


@pytest.mark.parametrize(
    ("form", "sentence"),
    [
        (
            DataLoader(TensorDataset(torch.zeros(4, 2))),
            "is a DataLoader, but every tool makes its own batches: give its",
        ),
        (pd.DataFrame({"a": [1.0, 2.0], "b": ["x", "y"]}), "is a DataFrame with columns that are not numbers, 'b' "),
        ({"labels": torch.zeros(4)}, "has no entry 'x', only labels"),
        ({}, "has no entry 'x', only none"),
        ({"x": torch.zeros(4, 2), "y": torch.zeros(3)}, "has 4 rows in 'x' and 3 in 'y': give the same number in each"),
        ("rows", "is a str that cannot be read as rows of numbers"),
        ([[1.0], [1.0, 2.0]], "is a list that cannot be read as rows of numbers"),
        (np.array(["a"]), "is a ndarray that cannot be read as rows of numbers"),
    ],
)
def test_what_are_no_rows_is_refused_in_one_sentence(form, sentence):
    with pytest.raises(ValueError, match=f"x_train {sentence}") as refused:
        as_rows(form, CPU, name="x_train")
    assert "\n" not in str(refused.value)


def test_a_data_set_of_tuples_is_refused_in_one_sentence():
    rows = as_rows(TensorDataset(torch.zeros(4, 2), torch.zeros(4)), CPU, num_workers=0)
    with pytest.raises(
        ValueError, match="items are tuples of 2, which does not say what each part is: return mappings"
    ):
        next(rows.chunks(2))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_file_is_read_without_becoming_memory(tmp_path):
    """Sixty-four megabytes in a file; the process grows by far less."""
    path = tmp_path / "large.npy"
    large = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(65536, 1024))
    large[:] = 1
    large.flush()
    del large
    rows = as_rows(np.load(path, mmap_mode="r"), CPU, num_workers=0)

    def resident_kib():
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))

    before = resident_kib()
    total = sum(int(batch["x"].sum()) for batch in rows.chunks(256))
    assert total == 65536 * 1024
    assert resident_kib() - before < 16 * 1024


def test_functions_stream_too():
    import pyro
    import pyro.distributions as dist

    def model(x=None, *, batch_size=None, mask=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 30.0).to_event(1))
            return pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x, mask=None):
        scale = pyro.param("scale", torch.ones(3), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x, scale).to_event(1))

    history = fit(Pair(model, guide), Labelled(), epochs=2, batch_size=10, num_workers=0, progress=False)
    assert np.isfinite(history["elbo"]).all()
