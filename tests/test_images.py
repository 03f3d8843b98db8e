"""Folders of images: pixels as they were saved, what was done to them said, all that is wrong in one sentence."""

import io
import os
import struct
import tracemalloc
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from pyro_vae._support import memory
from pyro_vae.data import images as module
from pyro_vae.data import pixels
from pyro_vae.data.sources import load_data

GREY = np.random.default_rng(0).integers(0, 256, (4, 6), np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (4, 6, 3), np.uint8)


def save(folder, name, image, **options):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(folder / name, **options)


def read(folder, **options):
    return load_data(str(folder), hold_out=False, **options)


def sentence(folder, **options):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        read(folder, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def channels_first(x):
    return np.moveaxis(x, -1, 0)


# --- modes


def test_grey_and_colour_are_intensities(tmp_path):
    save(tmp_path, "a.png", COLOUR)
    data = read(tmp_path)
    np.testing.assert_array_equal(data.x_test[0], channels_first(COLOUR))
    assert (data.values, data.bounds, data.notes, data.ids_test.tolist()) == ("intensities", (0, 255), (), ["a.png"])


def test_one_bit_is_bits(tmp_path):
    bits = GREY > 100
    for number, name in enumerate(["a.png", "b.tif", "c.bmp", "d.pbm"]):
        save(tmp_path, name, np.roll(bits, number))
    data = read(tmp_path)
    np.testing.assert_array_equal(data.x_test, [np.roll(bits, number) for number in range(4)])
    assert (data.values, data.bounds, data.x_test.dtype) == ("bits", (0, 1), torch.uint8)
    save(tmp_path, "e.png", GREY)
    mixed = read(tmp_path)
    np.testing.assert_array_equal(mixed.x_test[0], bits * 255)
    assert mixed.bounds == (0, 255)
    assert "4 of 5 images have 1 bit, which became the grey levels 0 and 255" in mixed.notes[0]


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_sixteen_bits_of_grey_are_kept(tmp_path, name):
    deep = np.arange(24, dtype=np.uint16).reshape(4, 6) * 2849
    save(tmp_path, name, deep)
    data = read(tmp_path)
    np.testing.assert_array_equal(data.x_test[0], deep)
    assert (data.bounds, data.values, data.x_test.dtype) == ((0, 65535), "intensities", torch.int32)


def test_sixteen_bits_of_the_other_byte_order_are_kept(tmp_path):
    deep = np.arange(24, dtype=np.uint16).reshape(4, 6) * 2849
    save(tmp_path, "a.tif", Image.frombytes("I;16B", (6, 4), deep.astype(">u2").tobytes()))
    np.testing.assert_array_equal(read(tmp_path).x_test[0], deep)


def test_floats_stay_floats_and_long_integers_whole(tmp_path):
    floats = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32) * 1000
    save(tmp_path / "f", "a.tif", floats)
    data = read(tmp_path / "f")
    np.testing.assert_array_equal(data.x_test[0], floats)
    assert (data.bounds, data.values) == (None, None)
    save(tmp_path / "u", "a.tiff", np.linspace(0, 1, 24, dtype=np.float32).reshape(4, 6))
    assert (read(tmp_path / "u").bounds, read(tmp_path / "u").values) == ((0, 1), "intensities")
    whole = np.array([[0, 70_000, 2**31 - 1]], np.int32)
    save(tmp_path / "i", "a.tif", whole)
    data = read(tmp_path / "i")
    np.testing.assert_array_equal(data.x_test[0], whole)
    assert (data.bounds, data.values) == (None, "counts or levels")


@pytest.mark.parametrize(("mode", "name"), [("CMYK", "a.tif"), ("YCbCr", "a.tif"), ("LAB", "a.tif"), ("HSV", "a.tif")])
def test_other_colour_spaces_are_converted_and_said(tmp_path, mode, name):
    smooth = np.stack([np.full((4, 6), level, np.uint8) for level in (200, 120, 40)], -1)
    if mode == "LAB":
        from PIL import ImageCms

        lab = ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(
            Image.fromarray(smooth), ImageCms.createProfile("sRGB"), lab, outputMode="LAB"
        )
    else:
        image = Image.fromarray(smooth).convert(mode)
    try:
        save(tmp_path, name, image)
    except (OSError, KeyError):
        pytest.skip(f"nothing writes {mode}")
    data = read(tmp_path)
    assert np.abs(data.x_test[0].numpy().astype(int) - channels_first(smooth)).max() <= 4
    assert any(f"were converted from {mode} to RGB" in note for note in data.notes)


# --- transparency


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif"])
def test_transparent_pixels_are_laid_on_white_and_said(tmp_path, name):
    alpha = np.zeros((4, 6, 1), np.uint8)
    alpha[1], alpha[2] = 255, 100
    image = Image.fromarray(np.concatenate([COLOUR, alpha], -1))
    save(tmp_path, name, image, **({"lossless": True, "exact": True} if "webp" in name else {}))
    data = read(tmp_path)
    white = Image.new("RGBA", (6, 4), "white")
    expected = np.asarray(Image.alpha_composite(white, image))[..., :3].astype(int)
    assert np.abs(data.x_test[0].numpy() - channels_first(expected)).max() <= 1
    assert (data.x_test[0, :, 0] == 255).all()
    assert any("1 of 1 images were partly transparent, and composited on white" in note for note in data.notes)


def test_what_is_opaque_throughout_is_not_mentioned(tmp_path):
    save(tmp_path, "a.png", np.concatenate([COLOUR, np.full((4, 6, 1), 255, np.uint8)], -1))
    save(tmp_path, "b.png", COLOUR)
    data = read(tmp_path)
    np.testing.assert_array_equal(data.x_test[0], data.x_test[1])
    assert data.notes == ()


def test_grey_with_transparency_stays_grey(tmp_path):
    alpha = np.where(GREY > 128, 255, 0).astype(np.uint8)
    save(tmp_path, "a.png", Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(alpha)]))
    np.testing.assert_array_equal(read(tmp_path).x_test[0], np.where(alpha, GREY, 255))
    save(tmp_path / "key", "a.png", Image.fromarray(GREY), transparency=int(GREY[0, 0]))
    np.testing.assert_array_equal(read(tmp_path / "key").x_test[0], np.where(GREY[0, 0] == GREY, 255, GREY))


@pytest.mark.parametrize("name", ["a.png", "a.gif"])
def test_palettes_give_their_colours_and_their_transparency(tmp_path, name):
    indices = np.array([[0, 1, 2]], np.uint8)
    image = Image.fromarray(indices).convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    save(tmp_path, name, image, transparency=1)
    found = read(tmp_path).x_test[0]
    np.testing.assert_array_equal(found[:, 0], np.array([[10, 255, 70], [20, 255, 80], [30, 255, 90]]))
    image.putpalette([10, 10, 10, 40, 40, 40, 70, 70, 70])
    save(tmp_path / "grey", name, image)
    np.testing.assert_array_equal(read(tmp_path / "grey").x_test[0], [[10, 40, 70]])


def deep_png(path, pixels):
    """A PNG of 16-bit samples (H, W, C), by the standard (ISO/IEC 15948)."""
    height, width, channels = pixels.shape
    rows = pixels.astype(">u2").reshape(height, -1).view(np.uint8)
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    content = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    chunks = [(b"IHDR", header), (b"IDAT", content), (b"IEND", b"")]
    packed = (struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))


@pytest.mark.parametrize("channels", [2, 4])
def test_sixteen_bits_with_transparency_are_laid_on_white(tmp_path, channels):
    x = np.random.default_rng(0).integers(0, 65536, (4, 6, channels))
    x[0, :, -1], x[1, :, -1] = 0, 65535
    deep_png(tmp_path / "a.png", x)
    found = read(tmp_path).x_test[0].numpy()
    colours = found if channels == 4 else found[None]
    assert (colours[:, 0] == 65535).all()
    np.testing.assert_array_equal(colours[:, 1], channels_first(x[..., :-1])[:, 1])
    share = x[..., -1:] / 65535
    expected = x[..., :-1] * share + 65535 * (1 - share)
    assert np.abs(colours - channels_first(expected)).max() <= 0.5 + 1e-6


def test_a_colour_of_sixteen_bits_that_is_transparent_is_white(tmp_path):
    x = np.random.default_rng(0).integers(0, 65536, (4, 6, 3))
    deep_png(tmp_path / "a.png", x)
    content, key = (tmp_path / "a.png").read_bytes(), x[0, 0].astype(">u2").tobytes()
    chunk = struct.pack(">I", 6) + b"tRNS" + key + struct.pack(">I", zlib.crc32(b"tRNS" + key))
    place = content.index(b"IDAT") - 4
    (tmp_path / "a.png").write_bytes(content[:place] + chunk + content[place:])
    x[0, 0] = 65535
    np.testing.assert_array_equal(read(tmp_path).x_test[0], channels_first(x))


def test_a_grey_level_of_sixteen_bits_that_is_transparent_is_white(tmp_path):
    deep = np.arange(24, dtype=np.uint16).reshape(4, 6) * 2849
    save(tmp_path, "a.png", Image.fromarray(deep), transparency=2849)
    data = read(tmp_path)
    np.testing.assert_array_equal(data.x_test[0], np.where(deep == 2849, 65535, deep))
    assert "composited on white" in data.notes[0]


def test_colours_of_sixteen_bits_that_pillow_would_clip_are_refused(tmp_path):
    samples = np.arange(12, dtype=">u2").tobytes()
    (tmp_path / "a.ppm").write_bytes(b"P6 2 2 65535\n" + samples)
    assert "more than 8 bits" in sentence(tmp_path)


@pytest.mark.parametrize(
    ("name", "kind", "start", "place", "bits"),
    [("a.jp2", "JPEG2000", b"\xff\x51", 40, 0x08), ("a.avif", "AVIF", b"av1C", 6, 0x40)],
)
def test_colours_that_pillow_would_cut_to_eight_bits_are_found_out(tmp_path, name, kind, start, place, bits):
    save(tmp_path, name, COLOUR)
    assert read(tmp_path).x_test.dtype == torch.uint8
    content = bytearray((tmp_path / name).read_bytes())
    content[content.index(start) + place] |= bits  # it says that it is deeper
    (tmp_path / name).write_bytes(content)
    image = SimpleNamespace(mode="RGB", format=kind, filename=tmp_path / name)  # as Pillow opens such files
    assert pixels._is_deep(image)
    with pytest.raises(OSError, match="more than 8 bits"):
        pixels._deep_samples(image)


# --- orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp"])
@pytest.mark.parametrize("pixels", [GREY, COLOUR, GREY.astype(np.uint16) * 257])
def test_images_are_turned_upright(tmp_path, orientation, name, pixels):
    if name == "a.webp" and pixels is not COLOUR:
        pytest.skip("WebP holds colours")
    exif = Image.Exif()
    exif[0x0112] = orientation
    save(tmp_path, name, pixels, exif=exif, **({"lossless": True} if name == "a.webp" else {}))
    with Image.open(tmp_path / name) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    data = read(tmp_path)
    np.testing.assert_array_equal(data.x_test[0], channels_first(expected) if expected.ndim == 3 else expected)
    turned = [note for note in data.notes if "1 of 1 images were rotated by their EXIF orientation" in note]
    assert len(turned) == (orientation != 1)


# --- sizes


def test_an_image_of_the_right_size_is_left_as_it_is_and_others_are_averaged(tmp_path):
    save(tmp_path, "a.png", GREY)
    save(tmp_path, "b.png", np.kron(GREY, np.ones((8, 8), np.uint8)))
    data = read(tmp_path, resize=(4, 6))
    np.testing.assert_array_equal(data.x_test[0], GREY)
    assert "1 of 2 images were resized, each new pixel the mean of those" in data.notes[0]
    assert "stretched" not in " ".join(data.notes)
    assert "2 of 2 images were stretched to other proportions" in " ".join(read(tmp_path, resize=(6, 6)).notes)
    board = np.indices((64, 64)).sum(0) % 2 * 255
    save(tmp_path / "fine", "a.png", board.astype(np.uint8))
    found = read(tmp_path / "fine", resize=(8, 8)).x_test[0, 2:-2, 2:-2]
    assert np.abs(found.numpy().astype(int) - 127).max() <= 1  # no moiré


@pytest.mark.parametrize(("mode", "level"), [("1", 1), ("L", 7), ("I;16", 40_000), ("F", 0.25), ("RGB", (1, 2, 3))])
def test_one_level_stays_one_level_at_every_size(tmp_path, mode, level):
    save(tmp_path, "a.tif", Image.new(mode, (13, 9), level))
    data = read(tmp_path, resize=(5, 20))
    assert data.x_test.shape[-2:] == (5, 20)
    flat = data.x_test[0].reshape(-1, 100) if mode == "RGB" else data.x_test[0].reshape(1, 100)
    assert (flat == torch.tensor(level).reshape(-1, 1).to(flat.dtype)).all()


@pytest.mark.parametrize("resize", [(0, 4), (4,), (4, 4, 4), (4.5, 4), "44"])
def test_a_size_that_is_none_is_refused(tmp_path, resize):
    save(tmp_path, "a.png", GREY)
    assert "resize must be a height and a width" in sentence(tmp_path, resize=resize)


def test_images_of_one_pixel(tmp_path):
    save(tmp_path, "a.png", np.array([[7]], np.uint8))
    assert read(tmp_path).x_test.tolist() == [[[7]]]
    assert read(tmp_path, resize=(2, 3)).x_test.tolist() == [[[7] * 3] * 2]


# --- what goes together and what does not


def test_grey_among_colours_becomes_colour_and_is_said(tmp_path):
    save(tmp_path, "a.png", GREY)
    save(tmp_path, "b.png", COLOUR)
    data = read(tmp_path)
    np.testing.assert_array_equal(data.x_test[0], [GREY] * 3)
    np.testing.assert_array_equal(data.x_test[1], channels_first(COLOUR))
    assert "1 of 2 images are grey and the others in colour" in data.notes[0]


def test_all_that_is_wrong_is_one_sentence(tmp_path):
    for number in range(9):
        save(tmp_path, f"good{number}.png", GREY)
    save(tmp_path, "turned.png", GREY.T)
    save(tmp_path, "deep.png", GREY.astype(np.uint16) * 257)
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good0.png").read_bytes()[:60])
    said = sentence(tmp_path)
    for words in ("empty.png (", "text.jpg (it is not an image, or damaged)", "cut.png (", "turned.png (6×4)"):
        assert words in said
    assert "deep.png (16 bits)" in said
    for number in range(9):
        (tmp_path / f"bad{number}.png").write_bytes(b"")
    assert "and 7 more" in sentence(tmp_path)


@pytest.mark.parametrize("name", ["a.gif", "a.tif", "a.webp", "a.png"])
def test_several_frames_are_refused_with_both_readings(tmp_path, name):
    frames = [Image.fromarray(np.roll(COLOUR, shift)) for shift in range(3)]
    save(tmp_path, name, frames[0], save_all=True, append_images=frames[1:])
    assert "a." in sentence(tmp_path)
    assert "several frames: save each as a separate image, or keep only one" in sentence(tmp_path)
    save(tmp_path / "one", name, frames[0], save_all=True)
    assert len(read(tmp_path / "one").x_test) == 1


def test_the_picture_of_a_telephone_is_taken_without_its_previews(tmp_path):
    photo = Image.fromarray(COLOUR)
    photo.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[photo.resize((3, 2))])
    assert read(tmp_path).x_test.shape == (1, 3, 4, 6)


# --- files and folders


def test_labels_and_names_go_with_their_images(tmp_path):
    for level, name in enumerate(["owl/b.PNG", "cat/x/a.png", "cat/c.png", "owl/a.png", "cat/d.Bmp"]):
        save(tmp_path, name, np.full((2, 2), level, np.uint8))
    data = load_data(str(tmp_path))
    whole = read(tmp_path)
    assert whole.labels == ("cat", "owl")
    assert whole.ids_test.tolist() == ["cat/c.png", "cat/d.Bmp", "cat/x/a.png", "owl/a.png", "owl/b.PNG"]
    assert whole.x_test[:, 0, 0].tolist() == [2, 4, 1, 3, 0]
    for part in ("train", "test"):
        ids, y, places = (getattr(data, f"{field}_{part}") for field in ("ids", "y", "rows"))
        assert [data.labels[code] for code in y] == [name.split("/")[0] for name in ids]
        assert ids.tolist() == whole.ids_test[places.numpy()].tolist()


def test_subfolders_that_may_be_parts_are_mentioned(tmp_path):
    for name in ("train/a.png", "train/b.png", "test/a.png"):
        save(tmp_path, name, GREY)
    assert "the subfolders test, train are treated as labels" in read(tmp_path).notes[0]


def test_what_is_hidden_is_left_out_and_what_is_no_image_is_mentioned(tmp_path):
    save(tmp_path, "a.png", GREY)
    save(tmp_path, ".cache/b.png", GREY)
    (tmp_path / ".c.png").write_bytes(b"")
    (tmp_path / "x.png").mkdir()
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "b.heic").write_bytes(b"")
    (tmp_path / "b.eps").write_bytes(b"")
    data = read(tmp_path)
    assert data.ids_test.tolist() == ["a.png"]
    assert "3 files without an image's suffix are left out: .eps, .heic, .txt" in data.notes[0]


def test_links_are_followed_and_loops_end(tmp_path):
    save(tmp_path / "elsewhere", "b.png", COLOUR)
    save(tmp_path / "all", "one/a.png", COLOUR)
    (tmp_path / "all" / "two").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "all" / "one" / "loop").symlink_to(tmp_path / "all")
    assert read(tmp_path / "all").ids_test.tolist() == ["one/a.png", "two/b.png"]
    (tmp_path / "all" / "c.png").symlink_to(tmp_path / "all" / "c.png")
    (tmp_path / "all" / "d.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "all" / "e.png")
    said = sentence(tmp_path / "all")
    assert all(f"{name}.png (it is not a file, or a broken link)" in said for name in "cde")


def test_names_of_every_kind(tmp_path):
    save(tmp_path, "a\nb.png", GREY)
    save(tmp_path, "ä ö.png", GREY)
    assert sorted(read(tmp_path).ids_test.tolist()) == ["a\nb.png", "ä ö.png"]
    (tmp_path / "c\nd.png").write_bytes(b"")
    assert r"'c\nd.png' (" in sentence(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read all")
def test_a_folder_that_may_not_be_read_is_refused(tmp_path):
    save(tmp_path, "a.png", GREY)
    (tmp_path / "b").mkdir(mode=0)
    assert "cannot read the folder" in sentence(tmp_path)


def test_images_that_do_not_fit_in_memory_are_refused_before_any_is_read(tmp_path, monkeypatch):
    for number in range(3):
        save(tmp_path, f"{number}.png", np.zeros((512, 512), np.uint8))
    monkeypatch.setattr(memory, "available_memory", lambda: 700_000)
    monkeypatch.setattr(module, "pixels", None)
    said = f"the 3 images in {tmp_path} take 0.000732 GiB, but 0.000652 GiB of memory are free"
    assert said in sentence(tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(memory, "available_memory", lambda: 700_000)
    assert read(tmp_path, resize=(4, 4)).x_test.shape == (3, 4, 4)


def test_images_of_absurd_size_are_refused(tmp_path):
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    packed = (struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))
    assert "could be decompression bomb" in sentence(tmp_path)


# --- damage


def encoded():
    """A small image in every format that is written here, by suffix."""
    found = {}
    for suffix in ("png", "tiff", "gif", "sgi", "qoi", "bmp", "jpg", "webp", "tga", "pcx", "ppm", "ico", "dds", "jp2"):
        with io.BytesIO() as file:
            try:
                image = Image.fromarray(np.kron(COLOUR, np.ones((3, 3, 1), np.uint8)))
                formats = {"jpg": "JPEG", "jp2": "JPEG2000", "tiff": "TIFF"}
                image.save(file, format=formats.get(suffix, suffix.upper()))
            except (KeyError, OSError):
                continue
            found[suffix] = file.getvalue()
    # QOI by its specification: a header, four pixels as they are, and the end
    found["qoi"] = b"qoif" + struct.pack(">IIBB", 2, 2, 3, 0) + b"\xfe\x01\x02\x03" * 4 + bytes(7) + b"\x01"
    return found


ENCODED = encoded()


@settings(max_examples=400, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(suffix=st.sampled_from(sorted(ENCODED)), data=st.data())
def test_damaged_images_are_read_or_refused_in_one_sentence(tmp_path, suffix, data):
    content = bytearray(ENCODED[suffix])
    early = st.integers(0, min(len(content), 120) - 1)
    for place in data.draw(st.lists(early | st.integers(0, len(content) - 1), max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.just(len(content)) | st.integers(0, len(content)))]
    path = tmp_path / "a.img.png"
    path.with_suffix(f".{suffix}").write_bytes(content)
    try:
        read(tmp_path)
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017
    finally:
        path.with_suffix(f".{suffix}").unlink()


@pytest.mark.parametrize("suffix", sorted(ENCODED))
def test_every_format_is_read_and_cut_off_it_is_refused_or_read(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(ENCODED[suffix])
    assert read(tmp_path).x_test.shape[1] in (3, 4)
    for share in (0, 0.1, 0.5, 0.9):
        path.write_bytes(ENCODED[suffix][: int(share * len(ENCODED[suffix]))])
        try:
            read(tmp_path)
        except ValueError as error:
            assert "\n" not in str(error)  # noqa: PT017


def test_no_second_copy_of_all_images_is_made(tmp_path):
    for number in range(20):
        save(tmp_path, f"{number}.png", np.full((256, 256, 3), number, np.uint8))
    tracemalloc.start()
    read(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2.5 * 20 * 256 * 256 * 3
