"""Models on the hub: against a server on this machine that keeps files as the hub does."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import pytest
import torch

from pyro_vae import mlp_vae
from pyro_vae.hub import from_pretrained, model_card, push_to_hub
from pyro_vae.likelihoods import Normal

pytest.importorskip("huggingface_hub")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FINDINGS = {
    "verdict": "Nothing is wrong, 0 to look at, 1 fine.",
    "findings": [{"level": "fine", "text": "all is well"}],
}


@pytest.fixture
def hub():
    """A server with one branch, whose files are those of the last commit."""
    files = {}

    class Handler(BaseHTTPRequestHandler):
        def answer(self, content, status=200, **headers):
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Length": len(body), **headers}.items():
                self.send_header(name.replace("_", "-"), str(value))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path.endswith("/create"):
                self.answer({"url": f"{address}/someone/model", "id": "someone/model"})
            elif self.path == "/api/validate-yaml":
                self.answer({"errors": [], "warnings": []})
            elif "/preupload/" in self.path:
                asked = json.loads(body)["files"]
                plain = [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None} for f in asked
                ]
                self.answer({"files": plain})
            elif "/commit/" in self.path:
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                url = f"{address}/someone/model/commit/{COMMIT}"
                self.answer({"commitUrl": url, "commitOid": COMMIT, "success": True})
            else:
                self.answer({}, 404)

        def do_GET(self):
            path = unquote(self.path.split("?")[0])
            if "/resolve/" in path:
                content = files.get(path.split("/resolve/")[1].split("/", 1)[1])
                if content is None:
                    self.answer({}, 404, X_Error_Code="EntryNotFound")
                else:
                    self.answer(content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=COMMIT)
            elif "/tree/" in path:
                self.answer([{"type": "file", "path": n, "size": len(c), "oid": "0"} for n, c in files.items()])
            elif "/revision/" in path or path.startswith("/api/models/someone"):
                listed = [{"rfilename": name} for name in files]
                self.answer({"id": "someone/model", "sha": COMMIT, "siblings": listed})
            else:
                self.answer({}, 404)

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("localhost", 0), Handler)
    address = f"http://localhost:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield address, files
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_model_comes_back_from_the_hub_as_it_went(hub, tmp_path):
    address, files = hub
    vae = mlp_vae((3,), latent_dim=2, likelihood=Normal())
    vae.save(tmp_path / "run", run={"data": "/home/me/secret/patients.csv", "epochs": 3})
    (tmp_path / "run" / "patients.csv").write_text("not to be shared")
    (tmp_path / "run" / "run.toml").write_text('data = "/home/me/secret/patients.csv"\n')
    (tmp_path / "run" / "figures").mkdir()
    for name in ("curves", "reconstructions"):  # of which one shows rows
        (tmp_path / "run" / "figures" / f"{name}.png").write_bytes(b"a picture")
    where = push_to_hub(tmp_path / "run", "someone/model", report=FINDINGS, token="hf_x", endpoint=address)
    assert where == f"{address}/someone/model"
    assert set(files) == {"README.md", "config.json", "model.safetensors", "figures/curves.png"}
    assert not [name for name, content in files.items() if b"secret" in content]
    card = files["README.md"].decode()
    assert 'from_pretrained("someone/model")' in card
    assert "all is well" in card
    again = from_pretrained("someone/model", endpoint=address, cache_dir=tmp_path / "cache")
    x = torch.randn(5, 3)
    assert torch.equal(vae.encode(x).mean, again.encode(x).mean)


def test_a_card_that_is_there_is_kept(hub, tmp_path):
    address, files = hub
    mlp_vae((3,), latent_dim=2, likelihood=Normal()).save(tmp_path / "run")
    (tmp_path / "run" / "README.md").write_text("mine")
    push_to_hub(tmp_path / "run", "someone/model", token="hf_x", endpoint=address)
    assert files["README.md"] == b"mine"


def test_a_card_says_no_more_than_the_name_of_the_data(tmp_path):
    vae = mlp_vae((3,), latent_dim=2, likelihood=Normal())
    vae.save(tmp_path / "run", run={"data": "/home/me/secret/patients.csv", "likelihood": "normal"})
    card = model_card(tmp_path / "run")
    assert "| data | patients.csv |" in card
    assert "secret" not in card
    assert "not been evaluated" in card
    assert card.startswith("---\nlibrary_name: pyro_vae\n")


def test_what_is_not_trained_is_not_published(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no trained model: it has no model\.safetensors"):
        push_to_hub(tmp_path, "someone/model")
