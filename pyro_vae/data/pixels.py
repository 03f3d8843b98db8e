"""Pixels of an image opened by Pillow: grey ``(H, W)`` or colour ``(H, W, 3)``, at their original depth."""

import contextlib
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyro_vae._support.arrays import as_tensor

__all__ = ["pixels", "resized"]


def pixels(image: Any) -> tuple[np.ndarray, list[str]]:
    """The pixels of an open image, and the changes made to them, each as a clause after "were".

    The type is ``bool`` for images of bits, ``uint8``, ``uint16``, ``int32`` or ``float32``.

    Raises:
        Exception: any that Pillow raises for a file that is damaged or that it cannot read.
    """
    deep = _is_deep(image)  # before loading, which loses it; reading EXIF loads a PNG
    remarks = ["rotated by their EXIF orientation"] if _orientation(image) != 1 else []
    image.load()
    x = _deep_samples(image) if deep else _samples(image)
    if image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        remarks.append(f"converted from {image.mode} to RGB")
    x = _TURNED[_orientation(image)](x)  # read again: Pillow itself rotates a TIFF
    if x.ndim == 3 and x.shape[-1] in (2, 4):
        colours, alpha, top = x[..., :-1], x[..., -1:].astype(np.int64), np.iinfo(x.dtype).max
        x = colours
        if (alpha < top).any():
            x = ((colours * alpha + top * (top - alpha) + top // 2) // top).astype(x.dtype)
            remarks.append("partly transparent, and composited on white")
    x = x[..., 0] if x.ndim == 3 and x.shape[-1] == 1 else x
    grey_palette = image.mode in ("P", "PA") and x.ndim == 3 and (x == x[..., :1]).all()
    return x[..., 0] if grey_palette else x, remarks


def resized(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes pixels to a height and width; each new pixel is the weighted mean of those that it covers.

    Example:
        >>> resized(np.array([[0, 0, 8, 8]], np.uint8), (1, 2)).shape
        (1, 2)
    """
    if x.shape[:2] == size:
        return x
    planes = torch.as_tensor(np.ascontiguousarray(np.moveaxis(np.atleast_3d(x), -1, 0)).astype(np.float64))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small = torch.nn.functional.interpolate(planes[None], size, mode="bilinear", antialias=True)[0]
    out = np.moveaxis((small if x.dtype.kind == "f" else small.round()).numpy().astype(x.dtype), 0, -1)
    return out if x.ndim == 3 else out[..., 0]


# How to bring an image of each EXIF orientation upright.
_TURNED = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x[::-1].swapaxes(0, 1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: x[:, ::-1].swapaxes(0, 1),
}


def _orientation(image: Any) -> int:
    with contextlib.suppress(Exception):  # damaged EXIF is ignored
        found = image.getexif().get(0x0112, 1)
        return found if found in _TURNED else 1
    return 1


def _samples(image: Any) -> np.ndarray:
    """Grey or colour, with opacity as the last channel if there is any."""
    mode, clear = image.mode, image.info.get("transparency")
    if mode == "1" and clear is None:
        return np.asarray(image)
    if mode == "F":
        return np.asarray(image)
    if mode.startswith("I;16") or (mode == "I" and image.format in ("PNG", "PPM")):  # both have 16 bits
        return _with_key(np.asarray(image).astype(np.uint16)[..., None], clear)
    if mode == "I":
        return np.asarray(image).astype(np.int32)
    if mode == "LAB":
        from PIL import ImageCms

        image = ImageCms.profileToProfile(
            image, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    if mode == "L" and clear is None:
        return np.asarray(image)
    if mode in ("1", "L", "LA", "La"):
        return np.asarray(image if mode == "LA" else image.convert("LA"))
    return np.asarray(image.convert("RGBA"))


def _is_deep(image: Any) -> bool:
    """Whether its colours have 16 bits, of which Pillow would keep 8."""
    if image.mode not in ("RGB", "RGBA", "LA", "CMYK"):
        return False
    if image.format in _DEEPER:
        with Path(image.filename).open("rb") as file:
            return re.search(_DEEPER[image.format], file.read(4096), re.DOTALL) is not None
    of_pnm = image.format == "PPM"
    for _, _, _, settings in getattr(image, "tile", ()):
        highest = max((s for s in settings if type(s) is int), default=0) if isinstance(settings, tuple) else 0
        if ";16" in str(settings) or (of_pnm and highest > 255):
            return True
    return False


# How to recognise more than 8 bits in files for which Pillow does not report them.
_DEEPER = {
    "JPEG2000": rb"\xff\x51.{38}[\x08-\x7f\x88-\xff]",  # the first precision, less one (ISO 15444-1, A.5.1)
    "AVIF": rb"av1C..[\x40-\x7f\xc0-\xff]",  # the bit high_bitdepth (AV1 Codec ISO Media File Format Binding, 2.3.3)
}


def _deep_samples(image: Any) -> np.ndarray:
    """Colours of 16 bits."""
    if image.format != "PNG":
        raise OSError(
            f"its colours have more than 8 bits, which can only be read from PNG files, not from {image.format}"
        )
    from pyro_vae.data.torchvision_import import import_torchvision

    import_torchvision()
    try:
        from torchvision.io import ImageReadMode, decode_png
    except ImportError as error:
        raise OSError("it has 16-bit colours, which this torchvision cannot read: save it in 8 bits") from error
    packed = as_tensor(np.frombuffer(Path(image.filename).read_bytes(), np.uint8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of all decoding in torchvision
        x = np.moveaxis(decode_png(packed, ImageReadMode.UNCHANGED).to(torch.int32).numpy().astype(np.uint16), 0, -1)
    return _with_key(x, image.info.get("transparency")) if x.shape[-1] == 3 else x


def _with_key(x: np.ndarray, clear: Any) -> np.ndarray:
    """Pixels ``(H, W, C)`` of 16 bits, with a channel of opacity if one colour means transparent."""
    if clear is None or isinstance(clear, bytes):
        return x
    seen = (x != np.array(clear, np.uint16)).any(-1, keepdims=True)
    return np.concatenate([x, np.where(seen, np.uint16(65535), np.uint16(0))], axis=-1)
