"""Facts of a compiled program: its memory analysis, and its instructions from XLA's text (HLO).

No other module and no test searches that text. Left out: compiling (aot.py).
"""

import dataclasses
import functools
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple, Self

import jax

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
COPIES = ("copy", "copy-start", "transpose", "gather")  # give an array that was elsewhere, or otherwise, in memory
Dims = tuple[int, ...]

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?[\w.-]+ = (.+?) ([a-z][\w-]*)\((.*)$")
_ARRAY = re.compile(r"([a-z]+)(\d*)(\w*)\[([\d,]*)\](?:\{([\d,]*))?")  # type, bits, variant, dimensions, order
_CALLED = re.compile(r"(?:body|condition|calls|to_apply|\w*_computations?)=(\{[^}]*\}|%?[\w.-]+)")
_OUT_OF_MEMORY = re.compile(r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm|HLO temporaries \(([\d.]+)([KMGT])\) exceeds")


class HloArray(NamedTuple):
    """An array that an instruction gives."""

    dtype: str  # as HLO writes it: f32, bf16, s8, pred
    dims: Dims
    layout: Dims | None  # the dimensions, the fastest in memory first; None where the text does not say
    nbytes: int


@dataclasses.dataclass(frozen=True)
class Instruction:
    """An instruction: its opcode, the arrays it gives, the computation it is in, and those that it calls."""

    opcode: str
    arrays: tuple[HloArray, ...]
    computation: str
    called: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class HloProgram:
    """The instructions of a program's text.

    >>> program = HloProgram.parse("%a = bf16[8,128]{1,0} all-gather(%x), dimensions={0}")
    >>> program.count("all-gather"), program.collective_bytes()
    (1, {'all-gather': 2048})
    """

    instructions: tuple[Instruction, ...]

    @classmethod
    def of(cls, compiled: Any) -> Self:
        """The instructions of a compiled program, as `jax.jit(f).lower(...).compile()` gives it."""
        return cls.parse(compiled.as_text())

    @classmethod
    def parse(cls, text: str) -> Self:
        """The instructions of an HLO text."""
        instructions, computation = [], ""
        for line in text.splitlines():
            match = _INSTRUCTION.match(line)
            if match is not None:
                types, opcode, rest = match.groups()
                called = [name.strip(" %") for names in _CALLED.findall(rest) for name in names.strip("{}").split(",")]
                instructions.append(Instruction(opcode, _arrays(types), computation, tuple(called)))
            elif (header := _COMPUTATION.match(line)) is not None:
                computation = header[1]
        return cls(tuple(instructions))

    @functools.cached_property
    def loop_computations(self) -> frozenset[str]:
        """The computations that a while loop runs, called directly or by others that it runs."""
        calls: dict[str, set[str]] = {}
        for op in self.instructions:
            calls.setdefault(op.computation, set()).update(op.called)
        inside: set[str] = set()
        waiting = [name for op in self.instructions if op.opcode == "while" for name in op.called]
        while waiting:
            name = waiting.pop()
            if name not in inside:
                inside.add(name)
                waiting += calls.get(name, ())
        return frozenset(inside)

    @property
    def loops(self) -> Self:
        """The instructions that run inside while loops alone."""
        return type(self)(tuple(op for op in self.instructions if op.computation in self.loop_computations))

    def count(self, opcode: str) -> int:
        """How many instructions have this opcode; an asynchronous `-start` counts, its `-done` does not."""
        return sum(op.opcode.removesuffix("-start") == opcode for op in self.instructions)

    def arrays(self, opcode: str | None = None) -> list[HloArray]:
        """The arrays that the instructions (those of this opcode) give, in the order of the text."""
        return [array for op in self.instructions if opcode in (None, op.opcode) for array in op.arrays]

    def has_array(self, dtype: str, dims: Dims) -> bool:
        """Whether some instruction gives an array of this type and these dimensions, in this order."""
        return any((array.dtype, array.dims) == (dtype, dims) for array in self.arrays())

    def counts_of(self, shapes: Iterable[Dims]) -> Counter[str]:
        """How often each opcode gives a single array of one of these dimensions, in whatever order, ones left out."""
        wanted = {_unordered(shape) for shape in shapes}
        return Counter(op.opcode for op in self.instructions if _single(op) in wanted)

    def collective_counts(self) -> dict[str, int]:
        """How often each kind of collective occurs."""
        counts = {kind: self.count(kind) for kind in COLLECTIVES}
        return {kind: count for kind, count in counts.items() if count}

    def collective_bytes(self) -> dict[str, int]:
        """Bytes that each kind of collective gives on a device; one in a loop is counted once."""
        by_kind: Counter[str] = Counter()
        for kind, count in self._collectives():
            by_kind[kind] += count
        return dict(by_kind)

    def largest_collective(self, kind: str) -> int:
        """The most bytes that one collective of this kind gives; 0 where there is none."""
        return max((count for other, count in self._collectives() if other == kind), default=0)

    def _collectives(self) -> list[tuple[str, int]]:
        """(kind, bytes) of each collective. A start gives its operands too, which are left out."""
        collectives = []
        for op in self.instructions:
            kind = op.opcode.removesuffix("-start")
            if kind in COLLECTIVES:
                sizes = [array.nbytes for array in op.arrays]
                repeats = kind != op.opcode and len(sizes) > 1 and kind != "all-reduce"
                collectives.append((kind, sum(sizes[len(sizes) // 2 :] if repeats else sizes)))
        return collectives


def _arrays(types: str) -> tuple[HloArray, ...]:
    return tuple(
        HloArray(
            f"{name}{bits}{variant}", _numbers(dims), _numbers(order) if order else None, _nbytes(name, bits, dims)
        )
        for name, bits, variant, dims, order in _ARRAY.findall(types)
    )


def _numbers(text: str) -> Dims:
    return tuple(int(number) for number in text.split(",") if number)


def _nbytes(name: str, bits: str, dims: str) -> int:
    """Bytes of an array as HLO writes it: bf16[8,128] is ("bf", "16", "8,128")."""
    itemsize = 1 if name == "pred" else int(bits or 8) // 8
    return itemsize * math.prod(_numbers(dims))


def _unordered(shape: Iterable[int]) -> Dims:
    """Dimensions in any order, those of size 1 left out."""
    return tuple(sorted(size for size in shape if size != 1))


def _single(instruction: Instruction) -> Dims | None:
    return _unordered(instruction.arrays[0].dims) if len(instruction.arrays) == 1 else None


class ProgramFacts(NamedTuple):
    """What a compiled program needs on each device, in bytes, and what its instructions are."""

    arguments: int
    outputs: int
    aliased: int  # outputs that take the place of arguments
    temporaries: int
    copies: int  # of arrays with a cache's dimensions, in whatever order
    scatters: int  # into such arrays
    collectives: dict[str, int]
    collective_bytes: dict[str, int]  # by kind; those in a loop are counted once

    @property
    def needed_bytes(self) -> int:
        """Bytes that a device needs while the program runs."""
        return self.arguments + self.outputs - self.aliased + self.temporaries


def program_facts(compiled: Any, caches: Collection[Dims] = ()) -> ProgramFacts:
    """The facts of a compiled program.

    Args:
      compiled: what `jax.jit(f).lower(...).compile()` gives.
      caches: the dimensions, on one device, of the arrays whose copies and scatters are counted.
    """
    memory, program = compiled.memory_analysis(), HloProgram.of(compiled)
    counts = program.counts_of(caches)
    return ProgramFacts(
        memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.alias_size_in_bytes,
        memory.temp_size_in_bytes, sum(counts[opcode] for opcode in COPIES), counts["scatter"],
        program.collective_counts(), program.collective_bytes(),
    )  # fmt: skip


def out_of_memory(error: Exception) -> tuple[float, bool] | None:
    """Bytes that a device needs, where that is what a compiler's error says; and whether of temporaries alone."""
    match = _OUT_OF_MEMORY.search(str(error))
    if match is None:
        return None
    number, unit = filter(None, match.groups())
    scale = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    return float(number) * scale[unit], match[1] is None


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays of a tree."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
