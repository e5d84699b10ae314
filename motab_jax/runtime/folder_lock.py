"""One run at a time in a folder, on disk or on a bucket: a small file that says who works there.

Its owner writes it anew every few seconds. A lock whose owner died is taken over: on the owner's own host at once, on
another when the file hasn't changed for a while; no clocks are compared. Left out: the processes of one run, of which
only the main one takes the lock.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any, Self

from motab_jax.config import EnvironmentFailure, UserError
from motab_jax.runtime.files import write_atomically
from motab_jax.runtime.storage import AnyPath, BucketErrors

NAME = ".lock"
BEAT_SECONDS = 10
WATCH_SECONDS = 3.5 * BEAT_SECONDS  # without a change in it a lock of another host counts as left behind


class FolderLock:
    """Holds a folder's lock from its construction on, until the block ends. A context manager.

    Raises:
      EnvironmentFailure: another process holds it; the message has its host, number and start.
    """

    def __init__(self, folder: AnyPath, beat: float = BEAT_SECONDS, watch: float = WATCH_SECONDS):
        self.folder, self._path = folder, folder / NAME
        self._owner = {
            "host": socket.gethostname(),
            "process": os.getpid(),
            "began": _began(os.getpid()),
            "since": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        }
        self._beat, self._watch, self._ended = beat, watch, threading.Event()
        with BucketErrors(folder):
            self._take()
        self._thread = threading.Thread(target=self._keep, name="lock", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(UserError, EnvironmentFailure, OSError), BucketErrors(self.folder):
            if self._is_own(_read(self._path)):
                self._path.unlink()

    def _take(self) -> None:
        taken_over = False
        while not _create(self._path, self._text(0)) or (taken_over and not self._kept()):
            found = _read(self._path)
            if found is None:
                continue
            if not self._left_behind(found):
                owner = f"{found.get('host')}, process {found.get('process')}, since {found.get('since')}"
                raise EnvironmentFailure(
                    f"{self.folder}: another run is working in it ({owner}); wait for it, stop it, or give this one "
                    "its own run.name"
                )
            left = f"process {found.get('process')} on {found.get('host')}, which is gone"
            print(f"{self.folder}: the lock of {left}, is taken over", file=sys.stderr)
            self._path.unlink(missing_ok=True)
            taken_over = True

    def _kept(self) -> bool:
        """Whether the new lock is still there a moment later: of two that take one over, one removes the other's."""
        time.sleep(1)
        return self._is_own(_read(self._path))

    def _left_behind(self, found: dict[str, Any]) -> bool:
        """Whether the owner is dead."""
        if found.get("host") == self._owner["host"]:
            return found.get("began") is None or _began(found.get("process", 0)) != found["began"]
        deadline = time.monotonic() + self._watch
        while time.monotonic() < deadline:
            time.sleep(min(1, self._beat))
            if _read(self._path) != found:
                return _read(self._path) is None
        return True

    def _keep(self) -> None:
        count = 0
        while not self._ended.wait(self._beat):
            count += 1
            with contextlib.suppress(UserError, EnvironmentFailure, OSError), BucketErrors(self.folder):
                if not self._is_own(_read(self._path)):
                    return
                if isinstance(self._path, Path):
                    write_atomically(self._path, self._text(count))
                else:
                    self._path.write_text(self._text(count))

    def _text(self, beat: int) -> str:
        return json.dumps({**self._owner, "beat": beat})

    def _is_own(self, found: dict[str, Any] | None) -> bool:
        return {**(found or {}), "beat": 0} == {**self._owner, "beat": 0}


def _create(path: AnyPath, text: str) -> bool:
    """Make the file; False where there is one."""
    try:
        if isinstance(path, Path):
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
        else:
            import fsspec

            fs, key = fsspec.core.url_to_fs(str(path))
            fs.pipe_file(key, text.encode(), mode="create")  # the server refuses it where there is one
    except FileExistsError:
        return False
    return True


def _read(path: AnyPath) -> dict[str, Any] | None:
    """What the lock says: None where there is none, {} where it isn't written yet."""
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _began(process: int) -> str | None:
    """When a process of this machine began, as no other one with its number did; None: it is dead."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    return None if fields[0] == "Z" else f"{boot} {fields[19]}"
