"""What is heavy comes when it is used: which modules are not there after the library has been imported."""

import subprocess
import sys

import pytest

HEAVY = [
    "arviz",
    "matplotlib",
    "pandas",
    "PIL",
    "scipy.stats",
    "sklearn",
    "torch._dynamo",
    "torch._inductor",
    "torchvision",
    "xarray",
]


def loaded(*codes):
    """The heavy modules that are there after each code, one after another in an interpreter of its own."""
    told = f"print(*[name for name in {HEAVY!r} if name in sys.modules])"
    script = "\n".join(["import sys", *(f"{code}\n{told}" for code in codes)])
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return [line.split() for line in done.stdout.splitlines()]


def test_what_is_heavy_is_not_imported():
    found = loaded(
        "import pyro_vae",
        "import pyro_vae; pyro_vae.fit; pyro_vae.evaluate",
        "import pyro_vae.evaluation as e; e.simulation_based_calibration; e.predictive_check; e.predictive_coverage; "
        "e.log_evidence; e.diagnose_guide; e.nuts_posterior; e.to_inference_data; e.sample_quality; "
        "e.frechet_distance; e.train_classifier_features; e.check_pair; e.plot_k_hat; e.ais_bounds; e.refine; "
        "e.rate_distortion_curve; e.evaluate_suite; e.render_html",
    )
    assert found == [[], [], []]


def test_importing_the_library_imports_next_to_nothing():
    found = "*[name for name in sys.modules if name.startswith('pyro_vae.')], 'torch' in sys.modules"
    code = f"import sys, pyro_vae; print({found})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["pyro_vae._support", "pyro_vae._support.lazy", "False"]


def test_every_public_name_of_evaluation_is_there():
    import pyro_vae.evaluation
    from pyro_vae.evaluation import report

    for room in (pyro_vae.evaluation, report):
        for name in room.__all__:
            assert getattr(room, name).__doc__
        assert dir(room) == sorted(room.__all__)
        with pytest.raises(AttributeError, match=f"module '{room.__name__}' has no attribute 'evaluat'"):
            _ = room.evaluat
