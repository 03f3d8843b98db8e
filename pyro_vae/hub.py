r"""Models on the Hugging Face hub: uploads run folders with a model card, and loads them again."""

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
_OF_PLACES = ("data", "data_root")  # settings with paths on the user's machine


def model_card(folder: str | os.PathLike[str], report: Mapping[str, Any] | None = None) -> str:
    """A model card in Markdown: what the model is, how it was trained, how good it is, and how to use it.

    Args:
        folder: A folder written by ``save`` or ``pyro-vae train``.
        report: The result of :func:`~pyro_vae.evaluation.evaluate_suite` as ``report.to_json()``, or the content of
            the JSON file from ``pyro-vae evaluate --suite``. Without it the card says that the model was not evaluated.

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
    lines += ["## Evaluation", ""]
    if report is None:
        lines += ["It had not been evaluated when this card was written.", ""]
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
    """Uploads a saved model to the hub: configuration, weights, history, curves, draws and a model card.

    No data and no paths to data are uploaded. The configuration does hold the names of columns, labels and levels.

    Args:
        folder: A folder written by ``save`` or ``pyro-vae train``. A card that it already has is kept.
        repo_id: ``OWNER/NAME``; created if it does not exist.
        report: An evaluation to summarise on the card, as for :func:`model_card`.
        private: Whether a new repository is private.
        token: By default, the token of ``hf auth login``.
        endpoint: The address of another hub.

    Returns:
        The address of the model.

    Raises:
        FileNotFoundError: if there is no trained model in the folder.
        ImportError: if ``huggingface_hub`` is not installed.
    """
    hub, folder = _hub(), Path(folder)
    if not (folder / WEIGHTS).exists():
        raise FileNotFoundError(f"{folder} holds no trained model: it has no {WEIGHTS}")
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
    """Loads a model from the hub, as :func:`~pyro_vae.load` loads a folder: no code in the files is run.

    Args:
        repo_id: ``OWNER/NAME``.
        into: For a pair of your own programs: that pair, as for :func:`~pyro_vae.load`.
        options: Options of ``huggingface_hub.snapshot_download``, such as ``revision``, ``token``, ``cache_dir``,
            ``endpoint`` or ``local_files_only``.

    Raises:
        ImportError: if ``huggingface_hub`` is not installed.
    """
    folder = _hub().snapshot_download(repo_id, allow_patterns=[CONFIG, WEIGHTS], **options)
    return load(folder) if into is None else load(folder, into=into)


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError("the hub needs huggingface_hub: pip install 'pyro-vae[hub]'") from error
    return huggingface_hub
