r"""Models on the Hugging Face hub: a run folder with a card, as the hub takes it."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_vae._support import files
from pyro_vae.vae import CONFIG, WEIGHTS, load, load_config

if TYPE_CHECKING:
    from pyro_vae.pair import Pair

__all__ = ["from_pretrained", "model_card", "push_to_hub"]

CARD = "README.md"
_AS_IT_IS = (CARD, WEIGHTS, "history.csv", "figures/curves.png", "figures/samples.png")  # other figures show rows
_OF_PLACES = ("data", "data_root")  # settings that say where files lie


def model_card(folder: str | os.PathLike[str], report: Mapping[str, Any] | None = None) -> str:
    """What a saved model is, how it was trained, what is known of it, and how to use it, as Markdown.

    Args:
        folder: What ``save`` or ``pyro-vae train`` wrote.
        report: What :func:`~pyro_vae.evaluation.evaluate_suite` found, ``report.to_json()``, or the JSON file of
            ``pyro-vae evaluate --suite``; without it the card says that nothing is known.

    Source: for the header, the documentation of model cards on huggingface.co; for their purpose, Mitchell et al.,
    *Model Cards for Model Reporting*, 2019.
    """
    config = load_config(folder)
    run, model = config["run"], config["model"]
    header = ["---", "library_name: pyro_vae", "tags:", "- variational-autoencoder", "- pyro", "---"]
    lines = [*header, "", f"# {Path(folder).resolve().name}", "", f"A {model['class']}, made with pyro_vae.", ""]
    shown = {"data": Path(str(run["data"])).name if "data" in run else None}
    shown |= {name: run.get(name) for name in ("model", "likelihood", "network", "latent_dim", "epochs", "seed")}
    made = run.get("made") or {}
    shown |= {"date": made.get("date"), "commit": made.get("commit"), "fingerprint of the rows": made.get("rows")}
    shown |= {
        "pyro_vae": config["pyro_vae_version"],
        "PyTorch": config["torch_version"],
        "Pyro": config["pyro_version"],
    }
    known = {name: value for name, value in shown.items() if value is not None}
    lines += ["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in known.items()), ""]
    lines += ["## What is known of it", ""]
    if report is None:
        lines += ["It was not evaluated when this was written.", ""]
    else:
        lines += [report["verdict"], "", *(f"- **{f['level']}** {f['text']}" for f in report["findings"]), ""]
    lines += ["## How to use it", "", "```python", "from pyro_vae.hub import from_pretrained", ""]
    lines += ['vae = from_pretrained("OWNER/NAME")', "x_new = vae.sample(16)", "```", ""]
    return "\n".join(lines)


def push_to_hub(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    report: Mapping[str, Any] | None = None,
    private: bool = False,
    token: str | None = None,
    endpoint: str | None = None,
) -> str:
    """Puts a saved model on the hub: configuration, weights, history, curves, draws and a card.

    No row of the data goes with it, nor where they lie. What the model itself knows of them does: the names of columns,
    labels and kinds.

    Args:
        folder: What ``save`` or ``pyro-vae train`` wrote. A card that is already there is kept.
        repo_id: ``OWNER/NAME``; made if it is not there.
        report: What the card is to say of how good it is, as for :func:`model_card`.
        private: Whether a new one is private.
        token: By default, that of ``hf auth login``.
        endpoint: Another hub's address.

    Returns:
        The address of the model.

    Raises:
        FileNotFoundError: if there is no trained model in the folder.
        ImportError: if ``huggingface_hub`` is not installed.
    """
    hub, folder = _hub(), Path(folder)
    if not (folder / WEIGHTS).exists():
        raise FileNotFoundError(f"{folder} holds no trained model: there is no {WEIGHTS}")
    if not (folder / CARD).exists():
        with files.replacing(folder / CARD) as temporary:
            temporary.write_text(model_card(folder, report).replace("OWNER/NAME", repo_id), encoding="utf-8")
    api = hub.HfApi(endpoint=endpoint, token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    with tempfile.TemporaryDirectory() as shared:
        for name in _AS_IT_IS:
            if (folder / name).exists():
                (Path(shared) / name).parent.mkdir(exist_ok=True)
                shutil.copy(folder / name, Path(shared) / name)
        config = dict(load_config(folder))
        config["run"] = {name: value for name, value in config["run"].items() if name not in _OF_PLACES}
        files.write_json(config, Path(shared) / CONFIG)
        api.upload_folder(repo_id=repo_id, folder_path=shared, commit_message="A trained model")
    return f"{api.endpoint}/{repo_id}"


def from_pretrained(repo_id: str, *, into: "Pair | None" = None, **options: Any) -> Any:
    """Opens a model from the hub, as :func:`~pyro_vae.load` opens a folder: files are data, and nothing in them is run.

    Args:
        repo_id: ``OWNER/NAME``.
        into: Where it is a pair of the user's own programs, that pair, as for :func:`~pyro_vae.load`.
        options: Of ``huggingface_hub.snapshot_download``, such as ``revision``, ``token``, ``cache_dir``, ``endpoint``
            or ``local_files_only``.

    Raises:
        ImportError: if ``huggingface_hub`` is not installed.
    """
    folder = _hub().snapshot_download(repo_id, allow_patterns=[CONFIG, WEIGHTS], **options)
    return load(folder) if into is None else load(folder, into=into)


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError("models are put on the hub with huggingface_hub: pip install 'pyro-vae[hub]'") from error
    return huggingface_hub
