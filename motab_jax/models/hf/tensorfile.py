"""Weight files: safetensors read and written one tensor at a time, in one file or in shards with an index.

Reading goes through the safetensors library. Writing is done here, because the library wants all tensors of a file in
memory at once; the format is an 8-byte length, a JSON header and the raw bytes (safetensors' published format).
Left out: what the tensors mean (weight_names.py).
"""

import contextlib
import json
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
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
# Of each dtype: the integers that its bits are, with and without a sign, and the bits of infinity.
_BITS = {
    DTYPES["F32"]: (np.int32, np.uint32, 0x7F800000),
    DTYPES["F16"]: (np.int16, np.uint16, 0x7C00),
    DTYPES["BF16"]: (np.int16, np.uint16, 0x7F80),
}
_CHECKED_AT_ONCE = 1 << 17  # numbers, few enough to stay in a core's cache
LISTED = 20  # tensors in an error message


def listed(names: Iterable[str]) -> str:
    """The first names, and how many there are beyond them."""
    names = list(names)
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


class TensorFiles:
    """The tensors of a folder, by name. Headers are read at once, a tensor when it is asked for. A context manager.

    Args:
      folder: where the files are.
      rename: from the names in the files to {name to use: name in the files}; tensors that it leaves out don't count.

    Raises UserError if a file is missing, half-downloaded or not safetensors, or the index and its files disagree.
    """

    def __init__(
        self, folder: Path, rename: Callable[[set[str]], dict[str, str]] = lambda names: {n: n for n in names}
    ):
        self._folder = folder
        self._stack = contextlib.ExitStack()
        self._slices: dict[str, Any] = {}
        stored: dict[str, Any] = {}
        with contextlib.ExitStack() as opened:
            indexed = weight_files(folder)
            for path, wanted in indexed.items():
                file = opened.enter_context(_open(path))
                held = set(file.keys())
                if lacking := sorted(wanted - held):
                    raise UserError(
                        f"{folder / INDEX}: names tensors that {path.name} does not hold: {listed(lacking)}; "
                        "download the model again"
                    )
                elsewhere = set().union(*(names for other, names in indexed.items() if other != path))
                stored |= {name: file.get_slice(name) for name in held - elsewhere}
            try:
                self._slices = {name: stored[held] for name, held in rename(set(stored)).items()}
            except UserError as error:
                raise UserError(f"{folder}: {error}") from None
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
            raise UserError(
                f"{self._folder}: the tensor {name} is stored as {stored}; implemented: {', '.join(DTYPES)}"
            )
        return DTYPES[stored]

    def read(self, name: str, spans: Sequence[tuple[int, int]] | None = None) -> np.ndarray:
        """A tensor, or these spans (first, one past the last) of its dimensions, read from disk now.

        Raises:
          UserError: a number in it is NaN or infinite.
        """
        values = self._slices[name][... if spans is None else tuple(slice(*span) for span in spans)]
        if not is_finite(values):
            raise UserError(
                f"{self._folder}: the tensor {name} holds NaN or infinity: the model is damaged, or was saved after "
                "its training diverged; take another copy of it"
            )
        return values

    def equal(self, one: str, other: str, rows: int = 4096) -> bool:
        """Whether two tensors are the same, compared some rows at a time. UserError as from `read`."""
        shape = self.shape(one)
        if not shape or shape != self.shape(other) or self.dtype(one) != self.dtype(other):
            return False
        rest = [(0, size) for size in shape[1:]]
        cuts = [[(start, min(start + rows, shape[0])), *rest] for start in range(0, shape[0], rows)]
        return all(np.array_equal(self.read(one, cut), self.read(other, cut)) for cut in cuts)


def is_finite(values: np.ndarray) -> bool:
    """Whether no number is NaN or infinite; of float32, float16 or bfloat16.

    The bits of such a number are an integer at or above infinity's, of either sign: two maxima, and no copy.
    """
    signed, unsigned, infinity = _BITS[values.dtype]
    negative = infinity | 1 << (8 * values.dtype.itemsize - 1)
    flat = values.reshape(-1)
    parts = (flat[start : start + _CHECKED_AT_ONCE] for start in range(0, flat.size, _CHECKED_AT_ONCE))
    return all(p.view(signed).max() < infinity and p.view(unsigned).max() < negative for p in parts)


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


def weight_files(folder: Path) -> dict[Path, set[str]]:
    """The files that hold a folder's weights, and which tensors the index says they hold (none without an index).

    Raises:
      UserError: there are none, or only others than safetensors, or two sets of them.
    """
    single, index = folder / SINGLE, folder / INDEX
    shards = _indexed(index) if index.exists() else {}
    if single.exists() and shards.keys() - {single}:
        # transformers takes the one file; after a model was saved twice into a folder either may be the stale one.
        if all(path.exists() for path in shards):
            raise UserError(
                f"{folder}: holds {SINGLE} and also the files of {INDEX}; remove those that are not the model"
            )
        return {single: set()}
    if single.exists() or shards:
        return shards or {single: set()}
    if found := other_contents(folder):
        raise UserError(f"{folder}: {found}")
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if pickled:
        raise UserError(
            f"{folder}: only pickled weights ({pickled[0]}), which can run code when loaded and are refused; "
            "convert them to safetensors"
        )
    raise UserError(f"{folder}: holds neither {SINGLE} nor {INDEX}")


def _indexed(index: Path) -> dict[Path, set[str]]:
    """The files of an index, and the tensors of each."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise UserError(f"{index}: weight_map does not say which file holds which tensor")
    if outside := [name for name in names.values() if Path(name).name != name]:
        raise UserError(f"{index}: {outside[0]} is not a file of this folder")
    shards: dict[Path, set[str]] = {index.with_name(name): set() for name in sorted(set(names.values()))}
    for tensor, name in names.items():
        shards[index.with_name(name)].add(tensor)
    return shards


def other_contents(folder: Path) -> str | None:
    """What a folder without a model's own files holds instead, and what to do about it; None if that isn't known."""
    if (folder / "adapter_config.json").exists():
        return (
            "holds an adapter (LoRA) without its base model; merge the two (peft: merge_and_unload, then "
            "save_pretrained) and name that folder"
        )
    if files := sorted(folder.glob("*.gguf")):
        return f"holds GGUF weights; convert them first: python -m motab_jax.models.hf.gguf NEW_FOLDER {files[0]}"
    if (folder / "export" / "config.json").exists():
        return f"a run's folder; its model is {folder / 'export'}"
    return None


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
