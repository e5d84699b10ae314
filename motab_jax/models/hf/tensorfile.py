"""Weight files: safetensors read and written one tensor at a time, in one file or in shards with an index.

Reading goes through the safetensors library. Writing is done here, because the library wants all tensors of a file in
memory at once; the format is an 8-byte length, a JSON header and the raw bytes (safetensors' published format).
Left out: what the tensors mean (weight_names.py).
"""

import contextlib
import json
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from motab_jax.config import UserError
from motab_jax.runtime.hub import read_json, write_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class TensorFiles:
    """The tensors of a folder, by name. Headers are read at once, a tensor when it is asked for. A context manager.

    Raises UserError if a file is missing, half-downloaded or not safetensors.
    """

    def __init__(self, folder: Path):
        self._stack = contextlib.ExitStack()
        self._slices: dict[str, Any] = {}
        with contextlib.ExitStack() as opened:
            for path in weight_files(folder):
                file = opened.enter_context(_open(path))
                self._slices |= {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            self._stack = opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._slices = {}
        self._stack.close()

    def names(self) -> set[str]:
        """The names of all tensors."""
        return set(self._slices)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""
        return tuple(self._slices[name].get_shape())

    def dtype(self, name: str) -> np.dtype:
        """A tensor's dtype. UserError for one that is not float32, float16 or bfloat16."""
        stored = self._slices[name].get_dtype()
        if stored not in DTYPES:
            raise UserError(f"the tensor {name} is stored as {stored}; implemented: {', '.join(DTYPES)}")
        return DTYPES[stored]

    def read(self, name: str, spans: Sequence[tuple[int, int]] | None = None) -> np.ndarray:
        """A tensor, or these spans (first, one past the last) of its dimensions, read from disk now."""
        return self._slices[name][... if spans is None else tuple(slice(*span) for span in spans)]

    def equal(self, one: str, other: str, rows: int = 4096) -> bool:
        """Whether two tensors are the same, compared some rows at a time."""
        shape = self.shape(one)
        if not shape or shape != self.shape(other) or self.dtype(one) != self.dtype(other):
            return False
        a, b = self._slices[one], self._slices[other]
        cuts = [slice(start, min(start + rows, shape[0])) for start in range(0, shape[0], rows)]
        return all(np.array_equal(a[cut], b[cut]) for cut in cuts)


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Any]:
    try:
        file = safe_open(path, framework="numpy")
    except FileNotFoundError:
        raise UserError(f"{path}: the file is missing, though the index names it; download the model again") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a complete safetensors file ({error}); download it again") from None
    with file:
        yield file


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a folder's weights. UserError if there are none, or only pickled ones."""
    if (folder / SINGLE).exists():
        return [folder / SINGLE]
    if (folder / INDEX).exists():
        names = read_json(folder / INDEX).get("weight_map")
        if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
            raise UserError(f"{folder / INDEX}: weight_map does not say which file holds which tensor")
        shards = sorted(set(names.values()))
        if outside := [name for name in shards if Path(name).name != name]:
            raise UserError(f"{folder / INDEX}: {outside[0]} is not a file of this folder")
        return [folder / name for name in shards]
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if pickled:
        raise UserError(
            f"{folder}: only pickled weights ({pickled[0]}), which can run code when loaded and are refused; "
            "convert them to safetensors"
        )
    raise UserError(f"{folder}: holds neither {SINGLE} nor {INDEX}")


class Entry(NamedTuple):
    """A tensor to write: its name, shape and dtype, and a function that gives its values."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def size(self) -> int:
        """Bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def write_tensors(folder: Path | None, entries: Sequence[Entry], max_shard_bytes: int) -> None:
    """Write `entries` to one file, or to shards of at most `max_shard_bytes` (or one tensor) with an index.

    Holds one tensor at a time. With folder None everything is read and nothing written: what the other processes
    of a run do while the first writes, since gathering a sharded array takes all of them.
    """
    shards = _split(entries, max_shard_bytes)
    count = len(shards)
    names = [SINGLE] if count == 1 else [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    for name, shard in zip(names, shards, strict=True):
        # Wider types first, so that every tensor is aligned.
        ordered = sorted(shard, key=lambda entry: -entry.dtype.itemsize)
        if folder is None:
            for entry in ordered:
                entry.read()
        else:
            with open(folder / name, "wb") as file:
                _write_shard(file, ordered)
    if folder is not None and count > 1:
        shard_of = {entry.name: name for name, shard in zip(names, shards, strict=True) for entry in shard}
        total = sum(entry.size for entry in entries)
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": shard_of})


def _split(entries: Sequence[Entry], max_shard_bytes: int) -> list[list[Entry]]:
    shards: list[list[Entry]] = [[]]
    filled = 0
    for entry in entries:
        if shards[-1] and filled + entry.size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(entry)
        filled += entry.size
    return shards


def _write_shard(file: BinaryIO, entries: Sequence[Entry]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, shape, dtype, _ in entries:
        end = start + Entry(name, shape, dtype, _).size
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for entry in entries:
        values = entry.read()
        if values.shape != entry.shape or values.dtype != entry.dtype:
            raise ValueError(f"{entry.name}: {values.dtype}{values.shape} given for {entry.dtype}{entry.shape}")
        file.write(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
