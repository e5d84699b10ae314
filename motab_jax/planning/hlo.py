"""Compiling for TPUs that are not there: what XLA would do on a chip, read from the compiled program.

Needs the extra [tpu]. Times are rooflines, never measurements. Peak figures are the vendors' published ones.
"""

import math
import os
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax

from motab_jax.config import UserError

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_INSTRUCTION = re.compile(r"= \w+\[([\d,]*)\][^ ]* ([\w-]+)\(")
_COLLECTIVE = re.compile(rf"= (.+?) ({'|'.join(COLLECTIVES)})(-start)?\(")
_ARRAY = re.compile(r"(\w+?)(\d+)?\[([\d,]*)\]")  # a type, its bits, its dimensions
_OUT_OF_MEMORY = re.compile(r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm|HLO temporaries \(([\d.]+)([KMGT])\) exceeds")


# No TPU is touched, so none is looked for or complained about, and another process that has one is no obstacle.
ALONE = {
    "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_ACCELERATOR_TYPE": "v5p-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
}  # fmt: skip


class Chip(NamedTuple):
    """One device: dense bfloat16 FLOP/s; bytes a second and bytes of its memory; bytes a second of its links."""

    flops: float
    bandwidth: float
    memory: float
    links: float


# A device of TPU7x is one of a chip's two halves. Links: all of a chip's together, both ways.
CHIPS = {
    "v4": Chip(275e12, 1228e9, 32 * 2**30, 300e9),
    "v5e": Chip(197e12, 819e9, 16 * 2**30, 200e9),
    "v5p": Chip(459e12, 2765e9, 95 * 2**30, 600e9),
    "v6e": Chip(918e12, 1640e9, 32 * 2**30, 448e9),
    "tpu7x": Chip(1153.5e12, 3690e9, 96 * 2**30, 600e9),
    "h100": Chip(989e12, 3350e9, 80e9, 900e9),
    "h200": Chip(989e12, 4800e9, 141e9, 900e9),
}


def devices(topology: str) -> list[Any]:
    """Descriptions of the devices of a topology such as `v5e:2x2`. UserError without libtpu or for an unknown name."""
    for name, value in ALONE.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    fused = {"chip_config_name": "megacore"} if topology.startswith("v4:") else {}  # its two cores are one device
    try:
        return list(topologies.get_topology_desc(topology, platform="tpu", **fused).devices)
    except (RuntimeError, NotImplementedError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"topology={topology}: {reason}; give one such as v5e:2x2, v5p:2x2x1 or v6e:2x2, with '.[tpu]' installed"
        ) from None


class Facts(NamedTuple):
    """What a compiled program needs on each device, in bytes, and what is in its text."""

    arguments: int
    outputs: int
    aliased: int  # outputs that take the place of arguments
    temporaries: int
    copies: int  # of arrays with a cache's dimensions, in whatever order
    scatters: int  # into such arrays
    collectives: dict[str, int]
    moved: dict[str, int]  # bytes that collectives give, by kind; those in a loop are counted once

    @property
    def held(self) -> int:
        """Bytes that a device needs while the program runs."""
        return self.arguments + self.outputs - self.aliased + self.temporaries


def facts(compiled: Any, caches: Iterable[tuple[int, ...]] = ()) -> Facts:
    """The facts of a compiled program; `caches` are the dimensions (on one device) that count as a cache."""
    memory, text = compiled.memory_analysis(), compiled.as_text()
    found = whole_copies(text, caches)
    return Facts(
        memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.alias_size_in_bytes,
        memory.temp_size_in_bytes, found["copy"], found["scatter"], collectives(text), moved(text),
    )  # fmt: skip


def whole_copies(text: str, caches: Iterable[tuple[int, ...]]) -> Counter:
    """How often an HLO text copies (also transposes, gathers) or scatters into arrays of these dimensions."""
    wanted = {_dims(shape) for shape in caches}
    found = Counter({"copy": 0, "scatter": 0})
    for dims, operation in _INSTRUCTION.findall(text):
        if _dims(int(d) for d in dims.split(",") if d) in wanted:
            kind = {"copy-start": "copy", "transpose": "copy", "gather": "copy"}.get(operation, operation)
            found[kind] += 1
    return found


def _dims(shape: Iterable[int]) -> tuple[int, ...]:
    """Dimensions in any order, those of size 1 left out."""
    return tuple(sorted(size for size in shape if size != 1))


def collectives(text: str) -> dict[str, int]:
    """How often each kind of collective stands in an HLO text."""
    counts = Counter(kind for _, kind, _ in _COLLECTIVE.findall(text))
    return {name: counts[name] for name in COLLECTIVES if counts[name]}


def moved(text: str) -> dict[str, int]:
    """Bytes of what each kind of collective in an HLO text gives; a start's operands, which it repeats, left out."""
    found: Counter = Counter()
    for types, kind, start in _COLLECTIVE.findall(text):
        arrays = [_bytes(*array) for array in _ARRAY.findall(types)]
        repeats = start and len(arrays) > 1 and kind != "all-reduce"
        found[kind] += sum(arrays[len(arrays) // 2 :] if repeats else arrays)
    return dict(found)


def _bytes(name: str, bits: str, dims: str) -> int:
    """Bytes of an array as HLO writes it: bf16[8,128] is (bf, 16, "8,128")."""
    each = 1 if name == "pred" else int(bits or 8) // 8
    return each * math.prod(map(int, filter(None, dims.split(","))))


def out_of_memory(error: Exception) -> tuple[float, bool] | None:
    """Bytes that a device needs, where that is what a compiler's error says; and whether of temporaries alone."""
    found = _OUT_OF_MEMORY.search(str(error))
    if found is None:
        return None
    number, unit = filter(None, found.groups())
    scale = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    return float(number) * scale[unit], found[1] is None


def size(tree: Any) -> int:
    """Bytes of all arrays of a tree."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
