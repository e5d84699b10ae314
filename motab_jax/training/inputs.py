"""What a run depends on besides its configuration, in digests: a resumed run says where something has changed."""

import hashlib
import importlib.metadata
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from motab_jax.config import UserError
from motab_jax.runtime.hub import find_folder
from motab_jax.runtime.notices import notice
from motab_jax.session.session import Session, model_paths, needs_teacher
from motab_jax.training.batches import Batches

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "tokenizers", "grain", "numpy")
_NAMES = {"prompts": "the training prompts", "completions": "the data's completions", "teacher": "the teacher's files"}


def describe_inputs(session: Session, batches: Batches) -> dict[str, Any]:
    """Digests of the encoded prompts, of the data's completions and of the teacher's files, and packages' versions.

    Prompts are compared as token ids, so that a template that prints the date is noticed. Of weights only names, sizes
    and headers are read.
    """
    completions = batches.completions
    _, teacher = model_paths(session.config, teacher=needs_teacher(session.config))
    return {
        "prompts": _digest_of_rows(batches.prompts.tokens),
        "completions": None if completions is None else _digest_of_rows(completions.tokens),
        "teacher": None if session.teacher is None or teacher is None else _digest_of_model(teacher),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def check_inputs(saved: dict[str, Any] | None, now: dict[str, Any], folder: Any) -> None:
    """Compare a run's inputs with those of its checkpoint; other versions of packages are only said.

    Args:
      saved: those of the checkpoint; None: it has none.
      now: those of this start.
      folder: the run folder, for the message.

    Raises:
      UserError: prompts, completions or the teacher have changed.
    """
    if saved is None:
        return
    changed = [name for key, name in _NAMES.items() if saved[key] != now[key]]
    if changed:
        raise UserError(
            f"{folder}: {' and '.join(changed)} changed since the run was saved; restore what it was started with (a "
            "chat template that prints the date changes the prompts, too), or give the new run its own run.name"
        )
    versions = {name: (version, now["versions"].get(name)) for name, version in saved["versions"].items()}
    other = [f"{name} {was}, now {version}" for name, (was, version) in versions.items() if was != version]
    if other:
        notice(f"{folder}: the run was saved with {'; '.join(other)}: its numbers may differ in their last digits")


def _digest_of_rows(rows: Sequence[Sequence[int]]) -> str:
    digest = hashlib.sha256(np.array([len(ids) for ids in rows], np.int32).tobytes())
    for ids in rows:
        digest.update(np.array(ids, np.int32).tobytes())
    return digest.hexdigest()


def _digest_of_model(path: Any) -> str:
    """Of a model folder: names and sizes of its files, config.json, and the headers of its weights."""
    digest = hashlib.sha256()
    folder = find_folder(path)
    files = sorted(file for pattern in ("config.json", "*.safetensors") for file in folder.glob(pattern))
    for file in files:
        digest.update(json.dumps([file.name, file.stat().st_size]).encode())
        digest.update(_header(file) if file.suffix == ".safetensors" else file.read_bytes())
    return digest.hexdigest()


def _header(file: Path) -> bytes:
    """The header of a safetensors file, which names its tensors with dtypes, shapes and places."""
    with file.open("rb") as opened:
        (size,) = struct.unpack("<Q", opened.read(8))
        return opened.read(min(size, 100_000_000))
