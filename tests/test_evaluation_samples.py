"""Quality of samples: against the papers' definitions pair by pair, and against closed forms."""

import math

import numpy as np
import pytest
import torch

from pyro_vae.evaluation import checkerboard, sample_quality

KEYS = ["precision", "recall", "density", "coverage"]


def brute_force(real, samples, k):
    """The definitions, one pair of points at a time."""

    def radii(points):
        return [
            sorted(math.dist(point, other) for j, other in enumerate(points) if j != i)[k - 1]
            for i, point in enumerate(points)
        ]

    real, samples = ([list(map(float, np.ravel(row))) for row in rows] for rows in (real, samples))
    real_radii, sample_radii = radii(real), radii(samples)
    close = 1 + 1e-6  # points that lie on a ball count as in it
    inside = [[math.dist(x, y) <= r * close for y in samples] for x, r in zip(real, real_radii, strict=True)]
    around = [[math.dist(x, y) <= s * close for y, s in zip(samples, sample_radii, strict=True)] for x in real]
    return {
        "precision": sum(any(row[j] for row in inside) for j in range(len(samples))) / len(samples),
        "recall": sum(any(row) for row in around) / len(real),
        "density": sum(map(sum, inside)) / (k * len(samples)),
        "coverage": sum(any(row) for row in inside) / len(real),
    }


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize(
    ("real_shape", "sample_shape"),
    [((60, 2), (60, 2)), ((50, 30), (80, 30)), ((40, 5, 6), (25, 5, 6))],
    ids=["few dimensions", "many dimensions", "images"],
)
def test_agrees_with_the_definitions_pair_by_pair(real_shape, sample_shape, k):
    generator = np.random.default_rng(k)
    real, samples = generator.normal(size=real_shape), 0.3 + 0.8 * generator.normal(size=sample_shape)
    quality = sample_quality(torch.as_tensor(real, dtype=torch.float64), samples, num_neighbors=k)
    assert list(quality) == KEYS
    assert quality == pytest.approx(brute_force(real, samples, k), abs=1e-12)
    assert all(type(value) is float for value in quality.values())


@pytest.mark.parametrize("num_dims", [2, 20])
def test_ties_and_repeated_rows_count_as_the_definitions_say(num_dims):
    generator = np.random.default_rng(0)
    real = generator.integers(0, 3, (70, num_dims)) * 85 + 1000  # few grey levels: many equal distances
    samples = np.concatenate([real[:20], real[:5], generator.integers(0, 3, (30, num_dims)) * 85 + 1000])
    expected = brute_force(real, samples, 4)
    assert sample_quality(real.astype(np.int32), samples.astype(np.int32), num_neighbors=4) == pytest.approx(expected)
    assert sample_quality(real / 255, samples / 255, num_neighbors=4) == pytest.approx(expected)


def test_many_rows_are_taken_in_parts(monkeypatch):
    real, samples = torch.randn(300, 4), torch.randn(200, 4)
    whole = sample_quality(real, samples)
    monkeypatch.setattr("pyro_vae.evaluation.samples._MEBIBYTES", 0.01)
    assert sample_quality(real, samples) == whole


@pytest.mark.parametrize("k", [1, 5])
def test_identical_sets_are_perfect(k):
    x = torch.rand(200, 7, 9)
    quality = sample_quality(x, x.clone(), num_neighbors=k)
    assert quality == pytest.approx({"precision": 1, "recall": 1, "density": (k + 1) / k, "coverage": 1})
    collapsed = sample_quality(x[:1].expand(20, 7, 9), x[:1].expand(30, 7, 9), num_neighbors=k)
    assert (collapsed["precision"], collapsed["recall"], collapsed["coverage"]) == (1, 1, 1)


def test_two_samples_of_one_distribution_have_the_expected_density_and_coverage():
    n, m, k = 1500, 1000, 5
    drawn = [sample_quality(torch.randn(n, 4), torch.randn(m, 4), num_neighbors=k) for _ in range(4)]
    coverage = 1 - math.prod((n - i) / (n + m - i) for i in range(1, k + 1))
    assert np.mean([q["density"] for q in drawn]) == pytest.approx(1, abs=0.03)
    assert np.mean([q["coverage"] for q in drawn]) == pytest.approx(coverage, abs=0.01)


def test_sets_far_from_each_other_have_nothing_in_common():
    assert sample_quality(torch.randn(100, 3), 50 + torch.randn(90, 3)) == dict.fromkeys(KEYS, 0.0)


def test_a_mode_that_is_left_out_shows_in_recall_and_coverage_and_not_in_precision():
    centres = torch.tensor([[0.0, 0.0], [30.0, 0.0], [0.0, 30.0], [30.0, 30.0]])
    real, samples = (centres[torch.arange(800) % modes] + torch.randn(800, 2) for modes in (4, 3))
    quality = sample_quality(real, samples)
    assert quality["precision"] > 0.95
    assert quality["density"] == pytest.approx(1, abs=0.1)
    assert 0.65 < quality["recall"] <= 0.75
    assert 0.65 < quality["coverage"] <= 0.75


def test_stray_samples_inflate_recall_and_not_coverage():
    real = torch.randn(300, 2)
    angles = torch.arange(6) * torch.pi / 3
    strays = 100 * torch.stack([angles.cos(), angles.sin()], 1)  # their balls reach as far as the data
    quality = sample_quality(real, torch.cat([0.01 * torch.randn(300, 2), strays]))
    assert quality["recall"] > 0.95
    assert quality["coverage"] < 0.1


def test_features_are_the_space_that_distances_are_taken_in():
    real, samples = torch.randn(100, 3, 4), torch.randn(80, 3, 4)
    projected = sample_quality(real, samples, features=lambda x: x.flatten(1)[:, :2])
    assert projected == sample_quality(real.flatten(1)[:, :2], samples.flatten(1)[:, :2])
    seen = []
    sample_quality(real.numpy(), samples.numpy(), features=lambda x: seen.append(x) or x.reshape(len(x), -1))
    assert [type(x) for x in seen] == [np.ndarray, np.ndarray]
    weight = torch.nn.Linear(12, 5)
    assert sample_quality(real, samples, features=lambda x: weight(x.flatten(1)))["density"] > 0


MISTAKES = {
    "no neighbours": ({"num_neighbors": 0}, "num_neighbors must be at least 1, found 0"),
    "few real rows": ({"real": torch.rand(5, 3)}, r"real has shape \(5, 3\), .* at least 6 of them"),
    "few samples": ({"samples": torch.rand(5, 3)}, r"samples has shape \(5, 3\), .* at least 6 of them"),
    "no rows but numbers": ({"real": torch.rand(50)}, r"real has shape \(50,\)"),
    "shapes": ({"samples": torch.rand(20, 4)}, r"rows of shape \(3,\) .* rows of shape \(4,\)"),
    "NaN": ({"samples": torch.full((20, 3), torch.nan)}, "samples has 60 NaN or infinite values"),
    "infinity": ({"real": np.full((20, 3), np.inf)}, "real has 60 NaN or infinite values"),
    "features of another rank": ({"features": lambda x: x.sum(1)}, r"features must map 30 rows to shape \(30, F\)"),
    "features that mix rows": ({"features": lambda x: x[:7]}, r"found \(7, 3\) for real"),
    "features that are NaN": ({"features": lambda x: x * torch.nan}, "the features of real has 90 NaN"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence(name):
    arguments, message = MISTAKES[name]
    with pytest.raises(ValueError, match=message):
        sample_quality(**({"real": torch.rand(30, 3), "samples": torch.rand(20, 3)} | arguments))


# Checkerboard


def alternation(height, width, down, across):
    signs = (-1.0) ** torch.arange(height)[:, None] if down else torch.ones(1, 1)
    return (signs * ((-1.0) ** torch.arange(width) if across else 1)).expand(height, width)


def wave(size, cycles):
    return torch.cos(2 * torch.pi * cycles * torch.arange(size) / size)


DIRECTIONS = pytest.mark.parametrize(("down", "across"), [(1, 0), (0, 1), (1, 1)], ids=["rows", "columns", "both"])


@DIRECTIONS
@pytest.mark.parametrize("size", [(28, 28), (4, 6), (32, 20)], ids=str)
def test_an_alternation_alone_is_one(size, down, across):
    assert checkerboard(3 + 0.1 * alternation(*size, down, across)) == pytest.approx(1)


@DIRECTIONS
def test_an_added_alternation_has_the_share_of_its_power(down, across):
    smooth = 2 * wave(24, 3)[:, None] * torch.ones(32)  # variance 2
    images = smooth + 0.5 * alternation(24, 32, down, across)
    assert checkerboard(images) == pytest.approx(0.25 / (2 + 0.25))


def test_a_modulation_has_the_mean_at_the_grid_and_the_content_beside_it():
    # (c + cos)(1 + a (-1)^w): the copy of c is the peak; half of the copy of cos stands one step nearer to 0
    c, a, size = 1.5, 0.2, 28
    content = c + wave(size, 1).expand(size, size)
    image = content * (1 + a * alternation(size, size, 0, 1))
    powers = 0.5 + a**2 * (c**2 + 0.5)  # of the cosine, of the copies of c and cosine
    assert checkerboard(image) == pytest.approx((a**2 * c**2 - a**2 / 4) / powers)


def test_enlarging_a_constant_shows_the_overlap_of_the_kernel():
    # A kernel of three ones at stride two covers pixels once and twice in turn: 1.5 ± 0.5 in rows and in columns.
    stride_2 = torch.nn.functional.conv_transpose2d(
        torch.ones(1, 1, 20, 20), torch.ones(1, 1, 3, 3), stride=2, padding=1, output_padding=1
    )[..., 2:-2, 2:-2]
    assert sorted(stride_2.unique().tolist()) == [1, 2, 4]
    assert checkerboard(stride_2) == pytest.approx(1)
    repeated = torch.nn.functional.conv2d(torch.ones(1, 1, 40, 40), torch.ones(1, 1, 3, 3))
    assert checkerboard(repeated) == 0


def test_repeated_pixels_have_no_power_at_the_grid():
    x = torch.rand(20, 8, 8).repeat_interleave(2, -1).repeat_interleave(2, -2)
    power = torch.fft.fft2(x.double()).abs().square().sum(0)
    assert float(power[8, 0] + power[0, 8] + power[8, 8]) == pytest.approx(0, abs=1e-9)
    assert -0.1 < checkerboard(x) < 0


def test_white_noise_is_zero_in_expectation():
    assert checkerboard(torch.randn(4000, 16, 16)) == pytest.approx(0, abs=3e-4)
    one_by_one = [checkerboard(torch.rand(6, 6)) for _ in range(3000)]
    assert np.mean(one_by_one) == pytest.approx(0, abs=4 * np.std(one_by_one) / math.sqrt(3000))


def test_smooth_images_are_near_zero_though_their_edges_do_not_meet():
    rows, columns = torch.linspace(0, 1, 28)[:, None], torch.linspace(0, 1, 28)
    blob = torch.exp(-20 * ((rows - 0.4) ** 2 + (columns - 0.6) ** 2))
    for image in (rows * torch.ones(28), rows * columns**2, blob):
        assert abs(checkerboard(image)) < 1e-4


def test_images_are_added_up_and_scale_mean_and_layout_do_not_matter():
    x = torch.rand(6, 2, 9, 11)
    expected = checkerboard(x)
    assert checkerboard(3 - 5 * x) == pytest.approx(expected, rel=1e-4)
    assert checkerboard(x.numpy().reshape(2, 3, 2, 9, 11)) == pytest.approx(expected)
    assert checkerboard(x[..., :8, :10]) == expected  # an odd last row and column are left out
    levels = (255 * x).to(torch.uint8)
    assert checkerboard(levels) == pytest.approx(checkerboard(levels.double()))
    one = alternation(8, 8, 1, 1)
    assert checkerboard(torch.stack([one, torch.ones(8, 8)])) == pytest.approx(1)
    assert checkerboard(0.1 + torch.zeros(5, 28, 28)) == 0


@pytest.mark.parametrize("shape", [(28,), (3, 28), (28, 2), (0, 28, 28)], ids=str)
def test_images_that_are_too_small_or_none_are_refused(shape):
    with pytest.raises(ValueError, match="at least 4×4; found"):
        checkerboard(torch.rand(shape))


def test_images_with_nan_are_refused():
    with pytest.raises(ValueError, match=r"images has 1 NaN or infinite value, the first at index \(0, 1\)"):
        checkerboard(torch.ones(6, 6).index_put((torch.tensor(0), torch.tensor(1)), torch.tensor(torch.nan)))
