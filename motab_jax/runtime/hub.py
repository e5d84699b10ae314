"""A model's folder: found (on disk or on the hub), its JSON files read, and replaced as a whole when written.

Left out: the weights inside it (tensorfile.py).
"""

import contextlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HFValidationError, HTTPError

from motab_jax.config import UserError

WANTED = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")
# HTTPError is that of the HTTP library, whose name differs between versions of huggingface_hub.
_UNREACHABLE = (HTTPError, HFValidationError, OSError)


def find_folder(path_or_hub_id: str | Path, wanted: Sequence[str] = WANTED) -> Path:
    """The folder itself, or that of the hub's model, downloaded if it is not in the cache. UserError if neither.

    wanted: patterns of the files that are downloaded.
    """
    text = str(path_or_hub_id)
    folder = Path(text).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise UserError(f"{text}: a file; name the model's folder")
    if isinstance(path_or_hub_id, Path) or text.startswith(("/", ".", "~")) or text.count("/") != 1 or text[-1] == "/":
        raise UserError(f"{text}: there is no such model folder")
    try:
        # Subfolders of a model's page hold the same weights in other formats.
        found = huggingface_hub.snapshot_download(text, allow_patterns=list(wanted), ignore_patterns=["*/*"])
    except _UNREACHABLE as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{text}: neither a folder here nor a model that the hub gives us ({reason})") from None
    return Path(found)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. UserError if the file is missing, unreadable, broken, or holds something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: the file is missing") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: broken JSON at line {error.lineno}: {error.msg}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a {type(value).__name__} where an object is expected")
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write an object, indented, with a last newline."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load_generation_config(folder: str | Path) -> dict[str, Any]:
    """The folder's generation_config.json; {} if it has none."""
    path = Path(folder) / "generation_config.json"
    return read_json(path) if path.exists() else {}


@contextlib.contextmanager
def replaced(folder: str | Path) -> Iterator[Path]:
    """Gives an empty sibling folder to write in; it takes the name `folder` only when the block ends without error.

    So a process killed while writing leaves no half folder, only `.NAME.partial`, which the next one clears away.
    A folder that is there is replaced if it holds a model and nothing else. UserError if it may not be, or on OSError.
    """
    target = Path(folder).expanduser().resolve()
    partial, old = (target.with_name(f".{target.name}.{word}") for word in ("partial", "old"))
    _check_replaceable(target)
    try:
        for left in (partial, old):
            if left.exists():
                shutil.rmtree(left)
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


def _check_replaceable(target: Path) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise UserError(f"{target}: a file is in the way; name a folder for the model")
    entries = list(target.iterdir())
    foreign = sorted(entry.name for entry in entries if entry.is_dir() or not any(map(entry.match, WANTED)))
    if entries and (foreign or not (target / "config.json").exists()):
        raise UserError(
            f"{target}: holds something else than a model ({', '.join(foreign[:3]) or 'no config.json'}); "
            "name a new folder"
        )
