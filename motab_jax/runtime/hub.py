"""The one way to a model's files: its folder, on disk or on the hub, its JSON files, and a new folder written whole.

Tokenizers, weights, plans and exports all come through here, so a hub id works wherever a folder does.
Left out: the weights inside the folder (models/hf/tensorfile.py).
"""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HFValidationError, HTTPError

from motab_jax.config import EnvironmentFailure, UserError
from motab_jax.runtime.failures import is_environment, retried
from motab_jax.runtime.staging import local_copy, put
from motab_jax.runtime.storage import AnyPath, BucketErrors, check_bucket, to_path

TOKENIZER_FILES = ("*.json", "*.jinja", "*.txt", "*.model")
MODEL_FILES = (*TOKENIZER_FILES, "*.safetensors")
# HTTPError is that of the HTTP library, whose name differs between versions of huggingface_hub.
_UNREACHABLE = (HTTPError, HFValidationError, OSError)


def find_folder(path_or_hub_id: str | Path, files: Sequence[str] = MODEL_FILES) -> Path:
    """The folder itself, or the bucket's or the hub's files of the model, downloaded where the local cache lacks them.

    Args:
      path_or_hub_id: a folder, its URL on a bucket, or OWNER/NAME on the hub.
      files: patterns of the file names to download.

    Raises:
      UserError: it is neither; or the hub cannot be reached, or refuses.
    """
    text = str(path_or_hub_id)
    folder = to_path(text)
    if not isinstance(folder, Path):
        return local_copy(text, files)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise UserError(f"{text}: a file; name the model's folder")
    if not may_be_hub_id(path_or_hub_id):
        raise UserError(f"{text}: there is no such model folder")
    try:
        # Subfolders of a model's page hold the same weights in other formats.
        snapshot = retried(
            lambda: huggingface_hub.snapshot_download(text, allow_patterns=list(files), ignore_patterns=["*/*"]),
            _UNREACHABLE,
        )
    except _UNREACHABLE as error:
        reason = " ".join(str(error).split())[:300]
        if is_environment(error):
            raise EnvironmentFailure(
                f"{text}: no folder here, and the hub, where it may be a model, could not be used ({reason})"
            ) from None
        raise UserError(f"{text}: neither a folder here nor a model that the hub gives us ({reason})") from None
    return Path(snapshot)


def may_be_hub_id(path_or_hub_id: str | Path) -> bool:
    """Whether this has the form OWNER/NAME, which a folder's path may have, too.

    >>> may_be_hub_id("Qwen/Qwen3-4B"), may_be_hub_id("./models"), may_be_hub_id("gs://bucket/model")
    (True, False, False)
    """
    text = str(path_or_hub_id)
    is_path = isinstance(path_or_hub_id, Path) or text.startswith(("/", ".", "~"))
    return not is_path and text.count("/") == 1 and text[-1] != "/"


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. UserError if the file is missing, unreadable, damaged, or holds something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: the file is missing") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: broken JSON at line {error.lineno}: {error.msg}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    except RecursionError:
        raise UserError(f"{path}: broken JSON: lists or objects are nested too deeply") from None
    except ValueError as error:  # a number of thousands of digits
        raise UserError(f"{path}: broken JSON: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a {type(value).__name__} where an object is expected")
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write an object, indented, with a last newline."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load_generation_config(path_or_hub_id: str | Path) -> dict[str, Any]:
    """The model's generation_config.json; {} if it has none. UserError as from `find_folder` and `read_json`."""
    path = find_folder(path_or_hub_id, ["generation_config.json"]) / "generation_config.json"
    return read_json(path) if path.exists() else {}


@contextlib.contextmanager
def replaced(folder: str | AnyPath) -> Iterator[Path]:
    """Yields an empty sibling folder to write in, which is renamed to `folder` when the block ends without error.

    A process killed while writing leaves `.NAME.partial` and nothing half-written; the next call removes it.
    An existing folder is replaced if it holds a model and nothing else. On a bucket, whose folders can't be renamed,
    config.json is removed first and put last.

    Raises:
      UserError: the folder holds something else, or cannot be written.
    """
    target = to_path(folder)
    if not isinstance(target, Path):
        with _replaced_on_bucket(target) as partial:
            yield partial
        return
    target = target.resolve()
    partial, old = (target.with_name(f".{target.name}.{suffix}") for suffix in ("partial", "old"))
    _check_replaceable(target)
    try:
        for leftover in (partial, old):
            if leftover.exists():
                shutil.rmtree(leftover)
        partial.mkdir(parents=True)
        yield partial
        if target.exists():
            target.rename(old)
        partial.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise UserError(f"{target}: the model cannot be written here: {error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _replaced_on_bucket(target: AnyPath) -> Iterator[Path]:
    """Yields a folder of this machine, which is uploaded at the end: config.json last, as a sign that all is there."""
    check_bucket(target)
    with BucketErrors(target):
        _check_replaceable(target)
    with tempfile.TemporaryDirectory(prefix="motab_jax-") as temporary:
        partial = Path(temporary)
        yield partial
        names = sorted(path.name for path in partial.iterdir() if path.name != "config.json")
        with BucketErrors(target):
            (target / "config.json").unlink(missing_ok=True)
            for name in names:
                put(partial / name, target / name)
            for stale in {path.name for path in target.iterdir()} - set(names):
                (target / stale).unlink(missing_ok=True)
            put(partial / "config.json", target / "config.json")


def _check_replaceable(target: AnyPath) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise UserError(f"{target}: a file is in the way; name a folder for the model")
    entries = list(target.iterdir())
    foreign = sorted(entry.name for entry in entries if entry.is_dir() or not any(map(entry.match, MODEL_FILES)))
    if entries and (foreign or not (target / "config.json").exists()):
        raise UserError(
            f"{target}: holds something else than a model ({', '.join(foreign[:3]) or 'no config.json'}); "
            "name a new folder"
        )
