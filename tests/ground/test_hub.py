"""Fetching by Hugging Face id, against a server on loopback that answers as the hub does."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "a" * 40


class Hub(BaseHTTPRequestHandler):
    """One model, lab/tiny, whose files are those of the directory `root`."""

    root: Path
    served: list[str]

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/lab/tiny/revision/main"):
            files = [{"rfilename": f.name} for f in sorted(self.root.iterdir())]
            self._send(json.dumps({"id": "lab/tiny", "sha": COMMIT, "siblings": files}).encode())
        elif path.startswith("/api/models/lab/tiny/tree/"):
            entries = [
                {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": _etag(f)}
                for f in sorted(self.root.iterdir())
            ]
            self._send(json.dumps(entries).encode())
        elif path.startswith("/lab/tiny/resolve/"):
            file = self.root / path.rpartition("/")[2]
            self.served.append(file.name)
            headers = {"ETag": f'"{_etag(file)}"', "X-Repo-Commit": COMMIT}
            self._send(file.read_bytes(), headers, with_body)
        else:
            code = "RevisionNotFound" if "lab/tiny" in path else "RepoNotFound"
            self._send(b"{}", {"X-Error-Code": code}, status=404)

    def _send(
        self, body: bytes, headers: dict[str, str] | None = None, with_body: bool = True, status=200
    ) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


@pytest.fixture
def hub(shared_checkpoint: Path, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment that points at a running hub with an empty cache."""
    root = tmp_path / "hub"
    root.mkdir()
    for file in shared_checkpoint.iterdir():
        (root / file.name).write_bytes(file.read_bytes())
    (root / "modeling_evil.py").write_text("raise SystemExit('code from the hub was run')")
    handler = type("Handler", (Hub,), {"root": root, "served": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    yield {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    server.shutdown()


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hrm_edge", "export", *arguments]
    env = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")} | environment
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


def test_a_model_is_fetched_once_without_its_code(hub: dict[str, str], tmp_path: Path) -> None:
    done = run(hub, "lab/tiny", "-o", str(tmp_path / "a"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a" / "manifest.json").is_file()
    cached = {path.name for path in Path(hub["HF_HOME"]).rglob("*")}
    assert "model.safetensors" in cached and "modeling_evil.py" not in cached
    offline = run(hub | {"HF_ENDPOINT": "http://127.0.0.1:9"}, "lab/tiny", "--offline", "-o",
                  str(tmp_path / "b"))  # fmt: skip
    assert offline.returncode == 0, offline.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lab/none"], "no such directory or model on the hub"),
        (["lab/tiny", "--revision", "v9"], "lab/tiny at revision v9: no such revision"),
        (["lab/tiny", "--offline"], "not in the local cache, and --offline was given"),
    ],
)
def test_what_cannot_be_fetched_is_one_line(
    hub: dict[str, str], tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = run(hub, *arguments, "-o", str(tmp_path / "out"))
    assert done.returncode == 1
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_an_unreachable_hub_is_one_line(hub: dict[str, str], tmp_path: Path) -> None:
    nowhere = hub | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    done = run(nowhere, "lab/tiny", "-o", str(tmp_path / "out"))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "the hub cannot be reached" in done.stderr or "download failed" in done.stderr
