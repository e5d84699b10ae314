"""Whose fault an error is; and a hub, on loopback, that is busy at first, or says no."""

import errno
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from motab_jax.config import EnvironmentFailure, UserError
from motab_jax.runtime import failures
from motab_jax.runtime.failures import is_environment, retried

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {"config.json": b'{"model_type": "qwen3"}'}


@pytest.mark.parametrize("name", ["ESTALE", "EIO", "ENOSPC", "EDQUOT", "ETIMEDOUT", "ECONNRESET"])
def test_storage_and_network_are_the_environment(name):
    assert is_environment(OSError(getattr(errno, name), "x"))


@pytest.mark.parametrize(
    "error", [FileNotFoundError(2, "x"), PermissionError(13, "x"), IsADirectoryError(21, "x"), ValueError("x")]
)
def test_mistakes_are_not(error):
    assert not is_environment(error)


def test_the_cause_counts():
    error = ValueError("no model")
    error.__cause__ = TimeoutError()
    assert is_environment(error)


def test_only_the_environment_is_retried(monkeypatch):
    waits, calls = [], []
    monkeypatch.setattr(failures.time, "sleep", waits.append)

    def call():
        calls.append(1)
        raise OSError(errno.ESTALE if len(calls) < 3 else errno.ENOENT, "x")

    with pytest.raises(FileNotFoundError):
        retried(call)
    assert len(calls) == 3 and waits == [1.0, 2.0]


class Hub(BaseHTTPRequestHandler):
    """The hub's two kinds of request, for one model; `statuses` are given first, one a request."""

    statuses: list[int]

    def do_GET(self):
        self.answer(body=True)

    def do_HEAD(self):
        self.answer(body=False)

    def answer(self, *, body: bool):
        status = type(self).statuses.pop(0) if type(self).statuses else 200
        name = self.path.rpartition("/")[2].partition("?")[0]
        if status != 200:
            content, headers = b"{}", {}
        elif "/resolve/" in self.path:
            content = FILES[name]
            headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        elif "/tree/" in self.path:
            listing = [{"type": "file", "path": n, "size": len(c), "oid": "0" * 40} for n, c in FILES.items()]
            content, headers = json.dumps(listing).encode(), {}
        else:
            siblings = [{"rfilename": name} for name in FILES]
            content, headers = json.dumps({"id": "some/model", "sha": COMMIT, "siblings": siblings}).encode(), {}
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content)), "Content-Type": "application/json"}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format, *args):
        pass


@pytest.fixture
def find(tmp_path):
    """Looks for some/model in a process of its own, with a hub that first gives these statuses."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    code = """
from motab_jax.runtime import failures, hub
failures.FIRST_WAIT = 0.01
from motab_jax.config import RunError
try:
    print("found", (hub.find_folder("some/model", ["config.json"]) / "config.json").read_text())
except RunError as error:
    print(type(error).__name__, error.status, error)
"""

    def run(*statuses: int) -> str:
        Hub.statuses = list(statuses)
        env = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path)}
        env = {**env, "PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_XET": "1"}
        env.pop("HF_HUB_OFFLINE", None)
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    yield run
    server.shutdown()


def test_a_busy_hub_is_asked_again(find):
    assert find(503, 503).startswith("found")


@pytest.mark.parametrize(("status", "kind"), [(503, EnvironmentFailure), (404, UserError), (401, UserError)])
def test_a_hub_that_says_no(status, kind, find):
    said = find(*[status] * 100)
    assert said.startswith(f"{kind.__name__} {kind.status} some/model: ") and said.count("\n") == 1
