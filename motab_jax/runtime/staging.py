"""Files of buckets as files of this machine: copies of what is read, and folders that are written and uploaded.

What grows line by line (a log, a tracker's folder) can't grow on a bucket, whose objects are put whole. It is written
on this machine and put there as often as its owner asks for. Left out: checkpoints, which orbax writes to the bucket.
"""

import contextlib
import fcntl
import fnmatch
import hashlib
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from motab_jax.config import EnvironmentFailure, UserError
from motab_jax.runtime.storage import AnyPath, BucketErrors, is_bucket, to_path

UNSTAGED = ("checkpoints",)  # folders of a run that are not staged
_shown: dict[str, str] = {}  # folder of this machine -> the place that it is a copy of


def shown(text: str) -> str:
    """A message in which copies have the names of the places that they are copies of."""
    for folder, place in _shown.items():
        text = text.replace(folder, place)
    return text


def local_copy(place: str | os.PathLike[str], patterns: Sequence[str] = ()) -> Path:
    """A path of this machine with what a place holds: the place itself, or a copy of the bucket's file or folder.

    Copies are kept in the user's cache (XDG_CACHE_HOME), one for each version of the objects, and a host's processes
    share them: the first copies, the others wait.

    Args:
      place: a path or a bucket's URL.
      patterns: of a folder: the names of the files to copy, those in subfolders left out; none: `place` is a file.

    Raises:
      UserError: there is no such file or folder on the bucket, or access is refused.
      EnvironmentFailure: the bucket or this machine's disk can't be used.
    """
    path = to_path(place)
    if isinstance(path, Path):
        return path
    with BucketErrors(path):
        found = _objects(path, patterns)
        if not found and not (patterns and path.exists()):
            raise UserError(f"{path}: there is no such {'folder' if patterns else 'file'} on the bucket")
        version = hashlib.sha256(json.dumps([str(path), found]).encode()).hexdigest()[:24]
        cache = _cache() / version
        folder = cache / path.name
        _shown[str(folder if patterns else cache)] = str(path if patterns else path.parent)
        with _one_at_a_time(cache):
            if not cache.is_dir():
                _download(path, [name for name, *_ in found], cache, folder if patterns else cache)
    return folder


def _objects(path: Any, patterns: Sequence[str]) -> list[tuple[str, int, str]]:
    """(name, bytes, version) of the objects that are wanted."""
    import fsspec

    fs, key = fsspec.core.url_to_fs(str(path))
    try:
        entries = fs.ls(key, detail=True) if patterns else [fs.info(key)]
    except FileNotFoundError:
        return []
    files = [(entry["name"].rpartition("/")[2], entry) for entry in entries if entry["type"] == "file"]
    wanted = [(name, entry) for name, entry in files if not patterns or any(fnmatch.fnmatch(name, p) for p in patterns)]
    return sorted((name, int(entry["size"]), _version(entry)) for name, entry in wanted)


def _version(entry: dict[str, Any]) -> str:
    keys = ("generation", "VersionId", "etag", "ETag", "md5Hash", "mtime", "LastModified")
    return next((str(entry[key]) for key in keys if entry.get(key)), "")


def _cache() -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "motab_jax" / "buckets"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentFailure(
            f"{folder}: no copies of a bucket's files can be kept here ({error.strerror}); set XDG_CACHE_HOME"
        ) from None
    return folder


@contextlib.contextmanager
def _one_at_a_time(cache: Path) -> Iterator[None]:
    """Among the processes of this machine. The lock ends with its process."""
    with cache.with_name(f".{cache.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _download(path: Any, names: Sequence[str], cache: Path, folder: Path) -> None:
    """Copy objects into a new folder, which gets its name when all are there."""
    import fsspec

    fs, key = fsspec.core.url_to_fs(str(path))
    partial = cache.with_name(f".{cache.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        target = partial / folder.relative_to(cache)
        target.mkdir(parents=True)
        for name in names:
            fs.get_file(key if folder == cache else f"{key}/{name}", str(target / name))
        partial.rename(cache)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


class Staged:
    """A folder that is written on this machine. Where it is a bucket's, `push` uploads what has changed, file by file.

    Args:
      target: the folder: a path, or a bucket's URL.
      names: files that the folder may hold already, to be there from the start.
      last: files that are put after all others, in this order: who sees them sees the others too.

    Raises:
      UserError, EnvironmentFailure: the bucket can't be used.
    """

    def __init__(self, target: AnyPath, names: Sequence[str] = (), last: Sequence[str] = ()):
        self.target = target
        self._last = tuple(last)
        self._uploaded: dict[str, tuple[int, int]] = {}  # name -> size and time of the file that was put
        self._lock = threading.Lock()
        self._temporary = tempfile.TemporaryDirectory(prefix="motab_jax-") if is_bucket(target) else None
        self.local = Path(str(target)) if self._temporary is None else Path(self._temporary.name) / target.name
        if self._temporary is not None:
            _shown[str(self.local)] = str(target)
            self.local.mkdir()
            self.pull(names)

    def pull(self, names: Sequence[str]) -> None:
        """Copy these files from the bucket, those that it holds."""
        if self._temporary is None:
            return
        with BucketErrors(self.target):
            for name in names:
                source = self.target / name
                if source.exists():
                    (self.local / name).write_bytes(source.read_bytes())
                    self._uploaded[name] = self._stamp(name)

    def push(self) -> None:
        """Upload the files that changed since they were uploaded."""
        if self._temporary is None:
            return
        with self._lock, BucketErrors(self.target):
            order = {name: number for number, name in enumerate(self._last, 1)}
            for name in sorted(self._changed(), key=lambda name: (order.get(name, 0), name)):
                stamp = self._stamp(name)
                put(self.local / name, self.target / name)
                self._uploaded[name] = stamp

    def _changed(self) -> Iterator[str]:
        for folder, folders, names in os.walk(self.local):
            at = Path(folder).relative_to(self.local)
            folders[:] = [name for name in folders if not name.startswith(".") and str(at / name) not in UNSTAGED]
            for name in names:
                path, key = self.local / at / name, str(at / name)
                partial = name.startswith(".") or name.endswith(".partial") or path.is_symlink()
                if not partial and self._uploaded.get(key) != self._stamp(key):
                    yield key

    def _stamp(self, name: str) -> tuple[int, int]:
        state = (self.local / name).stat()
        return state.st_size, state.st_mtime_ns

    @contextlib.contextmanager
    def pushing(self, seconds: float) -> Iterator[Self]:
        """Uploads every so many seconds while the block runs, and at its end. What fails is tried again."""
        if self._temporary is None:
            yield self
            return
        ended = threading.Event()

        def work() -> None:
            while not ended.wait(seconds):
                with contextlib.suppress(UserError, EnvironmentFailure, OSError):  # OSError: a file that went away
                    self.push()

        thread = threading.Thread(target=work, name="uploads", daemon=True)
        thread.start()
        done = False
        try:
            yield self
            done = True
        finally:
            ended.set()
            thread.join()
            # Of two errors the first is the one to report.
            with contextlib.nullcontext() if done else contextlib.suppress(UserError, EnvironmentFailure, OSError):
                self.push()


def put(source: Path, target: AnyPath) -> None:
    """Upload a file: its object appears, or is replaced, in one step."""
    import fsspec

    fs, key = fsspec.core.url_to_fs(str(target))
    fs.put_file(str(source), key)
