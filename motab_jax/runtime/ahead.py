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


class Chip(NamedTuple):
    """One chip: dense bfloat16 FLOP/s, bytes a second and bytes of its memory."""

    flops: float
    bandwidth: float
    memory: float


CHIPS = {
    "v5e": Chip(197e12, 819e9, 16 * 2**30),
    "v5p": Chip(459e12, 2765e9, 95 * 2**30),
    "v6e": Chip(918e12, 1640e9, 32 * 2**30),
}


def devices(topology: str) -> list[Any]:
    """Descriptions of the devices of a topology such as `v5e:2x2`. UserError without libtpu or for an unknown name."""
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(topology, platform="tpu").devices)
    except (RuntimeError, NotImplementedError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"topology={topology}: {reason}; give one such as v5e:2x2, v5p:2x2x1 or v6e:2x2, with '.[tpu]' installed"
        ) from None


class Facts(NamedTuple):
    """What a compiled program needs on each device, in bytes, and what is in its text."""

    arguments: int
    outputs: int
    temporaries: int
    copies: int  # of arrays with a cache's dimensions, in whatever order
    scatters: int  # into such arrays
    collectives: dict[str, int]


def facts(compiled: Any, caches: Iterable[tuple[int, ...]] = ()) -> Facts:
    """The facts of a compiled program; `caches` are the dimensions (on one device) that count as a cache."""
    memory, text = compiled.memory_analysis(), compiled.as_text()
    found = whole_copies(text, caches)
    return Facts(
        memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.temp_size_in_bytes,
        found["copy"], found["scatter"], collectives(text),
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
    counts = Counter(operation.removesuffix("-start") for _, operation in _INSTRUCTION.findall(text))
    return {name: counts[name] for name in COLLECTIVES if counts[name]}


def size(tree: Any) -> int:
    """Bytes of all arrays of a tree."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
