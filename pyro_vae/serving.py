r"""Exports a trained VAE to files that run without this library: ``torch.export`` programs and ONNX."""

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import pyro
import torch
from torch import Tensor, nn

from pyro_vae._support import files
from pyro_vae.data.rows import Inputs
from pyro_vae.inference.structure import ContractError
from pyro_vae.programs.running import evaluating
from pyro_vae.vae import VAE

__all__ = ["export"]

_ROWS = 64  # rows on which exported files are compared with the model
_EXAMPLE = '''"""Runs the exported VAE with NumPy and onnxruntime alone: python example.py rows.npy"""

import sys

import numpy as np
import onnxruntime

rows = np.load(sys.argv[1]).astype(np.{dtype})  # (N, {shape}), in the units of the data{gaps}
encoder, decoder = (onnxruntime.InferenceSession(f"{{name}}.onnx") for name in ("encoder", "decoder"))
mean, scale = encoder.run(None, {{"x": rows}})  # of q(z|x): (N, {latent_dim}) each
(reconstructions,) = decoder.run(None, {{"z": mean}})  # E[x|z], in the units of the data
new = decoder.run(None, {{"z": np.random.randn(16, {latent_dim}).astype(np.{dtype})}})[0]{prior}
print(mean.shape, scale.shape, reconstructions.shape, new.shape)
'''


class _Encode(nn.Module):
    """Rows in the user's units to the mean and standard deviation of q(z|x)."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        batch = self.vae.prepare({"x": x})
        q = self.vae.encoder(batch.x, batch.mask)
        return q.mean, q.stddev


class _Decode(nn.Module):
    """Latents to the mean of the likelihood, in the user's units."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae
        self.dtype = vae.mean_at(torch.zeros(1, vae.latent_dim)).dtype  # may depend on the precision of the data

    def forward(self, z: Tensor) -> Tensor:
        mean = self.vae.decoder(z).mean
        return self.vae.transform.inverse(mean.double()).to(self.dtype)


def export(vae: VAE, folder: str | os.PathLike[str], x: Inputs, *, onnx: bool = True) -> list[Path]:
    r"""Writes the encoder and the decoder to a folder, for use without this library.

    The encoder maps rows in the user's units, transform and missing entries included, to the mean and the standard
    deviation of :math:`q(z \mid x)`; the decoder maps latents to :math:`E[x \mid z]`, in the user's units. Both take
    any number of rows. ``encoder.pt2`` and ``decoder.pt2`` are for ``torch.export.load``, ``encoder.onnx`` and
    ``decoder.onnx`` for an ONNX runtime; ``example.py`` runs the ONNX files with NumPy.

    Each file is loaded again and its output compared with the model's on the first rows, up to rounding, before it is
    put in place.

    Args:
        vae: A trained VAE.
        folder: The folder to write; created if it does not exist.
        x: At least two rows, to trace the programs and to compare them with the model.
        onnx: Also write the ONNX files, which needs the extra ``export``.

    Returns:
        The paths of the files.

    Raises:
        ContractError: if the model is not a VAE of rows alone, its posterior has no mean and scale, or its arithmetic
            cannot be exported.
        ModuleNotFoundError: if the ONNX packages are not installed.

    Example:
        >>> import tempfile
        >>> from pyro_vae import mlp_vae
        >>> from pyro_vae.likelihoods import Normal
        >>> vae = mlp_vae((3,), latent_dim=2, likelihood=Normal())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     paths = export(vae, folder, torch.randn(8, 3), onnx=False)
        ...     encoder = torch.export.load(paths[0]).module()
        ...     mean, scale = encoder(torch.randn(5, 3))
        >>> [path.name for path in paths], mean.shape
        (['encoder.pt2', 'decoder.pt2'], torch.Size([5, 2]))

    Source: for the formats, the documentation of PyTorch's ``torch.export`` and of ONNX (onnx.ai).
    """
    if not isinstance(vae, VAE):
        raise ContractError(
            f"export takes a VAE, whose encoder takes only rows and whose decoder takes only latents; found a "
            f"{type(vae).__name__}: export its networks with torch.export"
        )
    if onnx:
        _require_onnx()
    rows = next(vae.check(x).chunks(_ROWS))
    if more := [name for name in rows if name not in ("x", "mask")]:
        raise ContractError(f"export takes rows alone, but these come with {', '.join(more)}")
    shown = torch.as_tensor(rows["x"]).to(vae.device, vae.dtype)
    if len(shown) < 2:
        raise ValueError(f"export needs at least two rows to trace and compare, found {len(shown)}")
    folder = Path(folder)
    written = []
    with evaluating(vae), torch.no_grad(), pyro.validation_enabled(is_validate=False):
        encode, decode = _Encode(vae), _Decode(vae)
        z = encode(shown)[0]
        folder.mkdir(parents=True, exist_ok=True)
        for name, module, argument, given, found in (
            ("encoder", encode, "x", shown, ["mean", "scale"]),
            ("decoder", decode, "z", z, ["x"]),
        ):
            program = _exported(module, given, name)
            kinds = {".pt2": _save_program, **({".onnx": _save_onnx} if onnx else {})}
            for suffix, save in kinds.items():
                path = folder / f"{name}{suffix}"
                with files.replacing(path) as temporary:
                    opened = save(program, temporary, argument, given, found)
                    _compare(module, opened, given, path)
                written.append(path)
    if onnx:
        with files.replacing(folder / "example.py") as temporary:
            temporary.write_text(_example(vae), encoding="utf-8")
        written.append(folder / "example.py")
    return written


_Function = Callable[[Tensor], Sequence[Tensor]]


def _exported(module: nn.Module, given: Tensor, name: str) -> torch.export.ExportedProgram:
    try:
        return torch.export.export(module, (given,), dynamic_shapes=({0: torch.export.Dim("rows", min=2)},))
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ContractError(f"the {name} cannot be exported: {type(error).__name__}: {reason:.300}") from error


def _save_program(
    program: torch.export.ExportedProgram, path: Path, argument: str, given: Tensor, found: list[str]
) -> _Function:
    with open(path, "wb") as file:
        torch.export.save(program, file)
    with open(path, "rb") as file:
        opened = torch.export.load(file).module()
    return lambda x: _as_tuple(opened(x))


def _save_onnx(
    program: torch.export.ExportedProgram, path: Path, argument: str, given: Tensor, found: list[str]
) -> _Function:
    import onnxruntime

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own parts
        try:
            converted = torch.onnx.export(
                program, (given,), input_names=[argument], output_names=found, dynamo=True, verbose=False
            )
        except Exception as error:
            reason = " ".join(str(error.__cause__ or error).split())
            raise ContractError(
                f"the map from {argument} to {' and '.join(found)} cannot be written as ONNX, so give onnx=False: "
                f"{type(error).__name__}: {reason:.600}"
            ) from error
    assert converted is not None
    converted.save(path)
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return lambda x: [torch.as_tensor(part).to(x.device) for part in session.run(None, {argument: x.cpu().numpy()})]


def _compare(module: nn.Module, opened: _Function, given: Tensor, path: Path) -> None:
    """Checks that the loaded file gives the model's output, for all the rows and for two."""
    for rows in (given, given[:2]):
        for expected, found in zip(_as_tuple(module(rows)), opened(rows), strict=True):
            scale = float(expected.abs().amax())
            if not torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * max(1.0, scale), equal_nan=True):
                raise ContractError(
                    f"{path.name} differs from the model by up to "
                    f"{float((found - expected).abs().amax()):.2g} of {scale:.2g}: its arithmetic cannot be exported"
                )


def _as_tuple(found: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return (found,) if isinstance(found, Tensor) else found


def _example(vae: VAE) -> str:
    from pyro_vae.priors import StandardNormal

    return _EXAMPLE.format(
        dtype=str(vae.dtype).removeprefix("torch."),
        shape=", ".join(map(str, vae.event_shape or ())),
        latent_dim=vae.latent_dim,
        gaps="; NaN is a missing entry" if vae.missing == "nan" else "",
        prior=""
        if isinstance(vae.prior, StandardNormal)
        else "  # from a standard normal, not from this model's prior",
    )


def _require_onnx() -> None:
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"writing ONNX needs {error.name}: pip install 'pyro-vae[export]', or give onnx=False"
        ) from error
