"""The table of richer parts is made, from the same rows for all."""

import json

import compare_parts
import numpy as np
import pytest


def test_models_are_trained_and_their_differences_are_paired(tmp_path, capsys):
    np.save(tmp_path / "grey.npy", np.random.default_rng(0).integers(0, 256, (300, 6, 6), dtype=np.uint8))
    options = {"epochs": 1, "test_rows": 20, "num_particles": 10, "latent_dim": 2, "device": "cpu"}
    names = "standard;VampPrior;flow posterior;IWAE 5 doubly;gated networks"
    compare_parts.main(data=str(tmp_path / "grey.npy"), only=names, out=tmp_path / "parts.json", **options)
    models = json.loads((tmp_path / "parts.json").read_text())["models"]
    assert [row["model"] for row in models] == names.split(";")
    assert (models[0]["difference"], models[0]["error"]) == (0, 0)
    for row in models[1:]:
        assert row["difference"] == pytest.approx(row["evidence"] - models[0]["evidence"], abs=1e-6)
        assert row["error"] > 0
        assert row["evidence"] > row["elbo"] - 0.5  # of ten draws
    table = (tmp_path / "parts.md").read_text()
    assert table.count("\n") == 7
    assert table in capsys.readouterr().out + "\n"


def test_every_model_can_be_named():
    assert not any(";" in name for name in compare_parts.PARTS)
    with pytest.raises(ValueError, match="unknown model 'Vamp': did you mean 'VampPrior'"):
        compare_parts.main(only="Vamp", data="digits")
