"""Runs that go on: with the data, the split and the settings that they began with, or not at all."""

import json

import pytest
import torch
from torch.utils.data import Dataset

from pyro_vae import fit, mlp_vae
from pyro_vae._support import files
from pyro_vae.likelihoods import Normal
from pyro_vae.transforms import Identity, Scale, Standardize

ARGUMENTS = {"epochs": 6, "batch_size": 16, "progress": False, "compile": False}


def rows(seed=0, num_rows=64):
    return torch.randn(num_rows, 3, generator=torch.Generator().manual_seed(seed))


def small_vae(transform=None):
    torch.manual_seed(0)
    return mlp_vae((3,), 1, hidden_dims=(4,), likelihood=Normal(), transform=transform)


class StopsError(Exception):
    pass


class Stopping:
    """An ELBO that ends the run in its fourth epoch."""

    num_particles = 1

    def __init__(self, at=3 * 4 + 2):
        self.calls, self.at = 0, at

    def __call__(self, draws, progress):
        self.calls += 1
        if self.calls == self.at:
            raise StopsError
        return (draws.reconstruction - draws.rate).mean(0)

    def __repr__(self):
        return "an objective"


def stopped(path, x=None, **arguments):
    with pytest.raises(StopsError):
        fit(small_vae(), rows() if x is None else x, objective=Stopping(), checkpoint=path, **ARGUMENTS | arguments)


def resumed(path, x=None, vae=None, resume=True, **arguments):
    given = {"objective": Stopping(at=-1), "checkpoint": path, "resume": resume}
    return fit(vae or small_vae(), rows() if x is None else x, **ARGUMENTS | given | arguments)


CHANGES = {
    "an entry": lambda x: torch.cat([x[:-1], x[-1:] + 1e-6]),
    "the order": lambda x: x.flip(0),
    "other rows": lambda x: rows(1),
    "units": lambda x: x * 10,
    "the type": lambda x: x.double(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_training_rows_are_refused_by_name(tmp_path, change):
    path = tmp_path / "checkpoint.safetensors"
    stopped(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="is from a run on other training rows"):
        resumed(path, CHANGES[change](rows()))
    assert path.read_bytes() == before


def test_other_validation_rows_transform_and_settings_are_refused_by_name(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    stopped(path, validation_data=rows(2))
    for arguments, words in (
        ({"validation_data": rows(3)}, "other validation rows"),
        ({}, "other validation rows"),
        ({"validation_data": rows(2), "seed": 1}, "seed=0, found seed=1"),
        ({"validation_data": rows(2), "schedule": "constant"}, "schedule=cosine"),
        ({"validation_data": rows(2), "learning_rate": 1e-4}, "learning_rate=0.001"),
        ({"validation_data": rows(2), "vae": small_vae(Scale(-9, 9, onto=(-9, 9)))}, "transform"),
    ):
        with pytest.raises(ValueError, match=words):
            resumed(path, **arguments)
    assert len(resumed(path, validation_data=rows(2))) == 6


def test_a_run_goes_on_to_the_same_numbers_with_its_transform_and_default_batch(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    x = 1e5 + rows()
    whole, again = small_vae(Standardize((3,)).fit(x)), small_vae(Standardize((3,)).fit(x))
    arguments = ARGUMENTS | {"batch_size": None}  # all rows
    history = fit(whole, x, objective=Stopping(at=-1), **arguments)
    with pytest.raises(StopsError):
        fit(again, x, objective=Stopping(at=4), checkpoint=path, **arguments)
    resumed_history = resumed(path, x, again, batch_size=None)
    assert history["elbo"].tolist() == resumed_history["elbo"].tolist()
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("schedule", ["cosine", "constant", "plateau"])
def test_another_learning_rate_is_taken_where_it_is_asked_for_and_noted(tmp_path, schedule):
    path = tmp_path / "checkpoint.safetensors"
    stopped(path, schedule=schedule)
    history = resumed(path, resume="learning_rate", learning_rate=1e-4, schedule=schedule)
    assert history.attrs["changes"] == [{"epoch": 4, "learning_rate": [1e-3, 1e-4]}]
    unchanged = fit(small_vae(), rows(), objective=Stopping(at=-1), **ARGUMENTS | {"schedule": schedule})
    ratio = (history["learning_rate"] / unchanged["learning_rate"]).tolist()
    assert ratio == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1])
    numbers = json.loads(files.read_tensors(path)[1]["numbers"])
    assert numbers["identity"]["learning_rate"] == 1e-4
    assert numbers["changes"] == history.attrs["changes"]


def test_the_best_weights_by_then_are_kept_where_training_diverges(tmp_path):
    path = tmp_path / "checkpoint.safetensors"

    class Diverging(Stopping):
        def __call__(self, draws, progress):
            self.calls += 1
            objective = (draws.reconstruction - draws.rate).mean(0)
            return objective * (float("nan") if self.calls > 3 * 4 else 1.0)

    vae = small_vae()
    with pytest.raises(FloatingPointError, match="weights of epoch"):
        fit(vae, rows(), objective=Diverging(), checkpoint=path, **ARGUMENTS)
    assert all(bool(p.isfinite().all()) for p in vae.parameters())
    kept = files.read_tensors(path)[0]
    for name, parameter in vae.named_parameters():
        assert torch.equal(kept[f"weights/{name}"], parameter)
    assert len(resumed(path, resume="learning_rate", learning_rate=1e-4)) == 6


class Augmented(Dataset):
    """Rows with new noise each time."""

    def __len__(self):
        return 64

    def __getitem__(self, index):
        return rows()[index] + 0.1 * torch.randn(3)


def test_rows_that_change_when_they_are_read_can_be_gone_on_with(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    stopped(path, Augmented(), num_workers=0)
    assert len(resumed(path, Augmented(), num_workers=0)) == 6


def test_a_checkpoint_of_before_fingerprints_can_be_gone_on_with(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    stopped(path)
    flat, metadata = files.read_tensors(path)
    numbers = json.loads(metadata["numbers"])
    for name in ("training rows", "validation rows", "transform"):
        del numbers["identity"][name]
    del numbers["changes"]
    files.write_tensors(flat, path, {"numbers": json.dumps(numbers)})
    assert len(resumed(path)) == 6


DAMAGES = {
    "a moment of another shape": lambda t, n: t.update({"moments/0/exp_avg": torch.zeros(2)}),
    "a moment of another type": lambda t, n: t.update({"moments/0/exp_avg": t["moments/0/exp_avg"].double()}),
    "a moment of no parameter": lambda t, n: t.update({"moments/99/exp_avg": torch.zeros(2)}),
    "a step of another shape": lambda t, n: t.update({"moments/0/step": torch.zeros(3)}),
    "no random state": lambda t, n: t.pop("random/cpu"),
    "a short random state": lambda t, n: t.update({"random/cpu": torch.zeros(8, dtype=torch.uint8)}),
    "an order of floats": lambda t, n: t.update({"order/state": t["order/state"].float()}),
    "a random state of zeros": lambda t, n: t.update({"order/state": torch.zeros_like(t["order/state"]) + 77}),
    "best weights of another shape": lambda t, n: t.update({"best/a": torch.zeros(1)}),
    "no history": lambda t, n: n.update(history=[]),
    "a history of text": lambda t, n: n.update(history=["a"]),
    "a gap in the history": lambda t, n: n["history"].pop(0),
    "a best epoch of text": lambda t, n: n.update(best_epoch="two"),
    "no learning rate": lambda t, n: n["identity"].pop("learning_rate"),
    "a scheduler of text": lambda t, n: n.update(scheduler="cosine"),
    "groups that are missing": lambda t, n: n["optimizer"].update(param_groups=[]),
    "no optimiser": lambda t, n: n.update(optimizer=None),
    "an identity of text": lambda t, n: n.update(identity="me"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused_before_it_is_used(tmp_path, damage):
    path = tmp_path / "checkpoint.safetensors"
    stopped(path)
    flat, metadata = files.read_tensors(path)
    numbers = json.loads(metadata["numbers"])
    DAMAGES[damage](flat, numbers)
    files.write_tensors(flat, path, {"numbers": json.dumps(numbers)})
    vae = small_vae(Identity())
    before = [p.clone() for p in vae.parameters()]
    with pytest.raises(ValueError, match="is damaged") as caught:
        resumed(path, vae=vae)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(a, b) for a, b in zip(before, vae.parameters(), strict=True))


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    stopped(path)
    other = mlp_vae((3,), 1, hidden_dims=(5,), likelihood=Normal())
    with pytest.raises(ValueError, match="is from another model"):
        resumed(path, vae=other)


def test_no_flipped_bit_goes_unnoticed(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    stopped(path)
    whole = path.read_bytes()
    for place in torch.randint(0, len(whole), (60,), generator=torch.Generator().manual_seed(0)).tolist():
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=r"is damaged|is not a checkpoint|is from another|is from a run"):
            resumed(path)
