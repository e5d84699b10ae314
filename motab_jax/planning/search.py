"""A plan: what a run needs on a topology; and the search for a mesh, a batch and a length that fit."""

import dataclasses
import math
import re
from collections.abc import Callable, Collection
from typing import Any, Self

from motab_jax.config import Config, UserError
from motab_jax.planning import hlo
from motab_jax.planning.abstract_session import model_shapes
from motab_jax.planning.aot import Whole, compile_programs
from motab_jax.planning.roofline import Phase, Sizes, memory, phases, sizes_of
from motab_jax.runtime.mesh import AXES, make_mesh, mesh_sizes, valid_tensor_sizes

USABLE = 0.98  # of a chip's memory, after what its runtime keeps
SPARE = 0.8  # of that, for what arithmetic counts: temporaries need the rest
TRIES = 3  # meshes that are compiled, or lengths
Say = Callable[[str], None]
FOR_PROGRAM = {  # what makes each of them smaller
    "teacher relayout": "a larger mesh.tensor",
    "relayout": "a larger mesh.tensor, rollout.serve_dtype=bfloat16",
    "update": "optimizer.remat=full, optimizer.compute_dtype=bfloat16, a larger mesh.fsdp or mesh.tensor, "
    "a smaller rollout.max_new_tokens",
}


@dataclasses.dataclass(frozen=True)
class Target:
    """The devices that are planned for."""

    name: str
    chip: hlo.Chip
    count: int
    devices: list[Any] | None  # None: nothing can be compiled for them here
    strayed: float

    @classmethod
    def of(cls, topology: str, strayed: float) -> Self:
        """From a name such as v5p:4x4x4 or gpu:h100x8. UserError for others, and without libtpu."""
        gpu = re.fullmatch(r"gpu:(h100|h200)x(\d+)", topology)
        if gpu is not None and int(gpu[2]):
            return cls(topology, hlo.CHIPS[gpu[1]], int(gpu[2]), None, strayed)
        name = topology.split(":")[0]
        if name not in hlo.CHIPS or name.startswith("h"):
            chips = ", ".join(name for name in hlo.CHIPS if not name.startswith("h"))
            raise UserError(
                f"topology={topology}: give one of {chips} with its shape, such as v5p:4x4x4, or gpu:h100x8"
            )
        devices = hlo.devices(topology)
        return cls(topology, hlo.CHIPS[name], len(devices), devices, strayed)

    @property
    def limit(self) -> float:
        """Bytes of a device that a run may take."""
        return USABLE * self.chip.memory


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a configuration needs on a target."""

    config: Config
    target: Target
    sizes: Sizes
    phases: list[Phase]
    memory: dict[str, float]  # bytes by arithmetic
    whole: Whole | None  # what the compiler says; None: nobody compiled
    largest: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def needs(self) -> list[float]:
        """Bytes of a device while each program runs; in one where nobody compiled."""
        return [sum(self.memory.values())] if self.whole is None else [each.needed for each in self.whole.programs]

    @property
    def needed(self) -> float:
        """Bytes of a device at the fullest."""
        return max(self.needs)

    @property
    def fits(self) -> bool:
        return self.needed <= self.target.limit

    @property
    def seconds(self) -> float:
        """Of a step, at the least."""
        return sum(phase.seconds for phase in self.phases)

    @property
    def verdict(self) -> str:
        """The plan in a sentence, with what to change where it does not fit."""
        figures = f"{self.needed / 2**30:.1f} of {self.target.limit / 2**30:.1f} GiB a device"
        if self.whole is None:
            figures += ", by arithmetic, without temporaries"
        if self.fits:
            slowest = max(self.phases, key=lambda phase: phase.seconds)
            share = slowest.seconds / self.seconds
            return (
                f"fits: {figures}; a step takes at least {self.seconds:.3g} s, "
                f"{100 * share:.0f}% of them '{slowest.name}' (bound by {slowest.binds})"
            )
        return f"does not fit: {figures}; {self._advice()}"

    def _advice(self) -> str:
        if self.whole is not None:
            fullest = max(self.whole.programs, key=lambda each: each.needed)
            own = fullest.needed - fullest.beside
            where = f"the program '{fullest.name}' needs {own / 2**30:.1f} GiB beside {fullest.beside / 2**30:.1f} GiB"
            if fullest.name != "rollout":
                return f"{where}: try {FOR_PROGRAM[fullest.name]}, more chips, or mesh=find"
            where += "; most"
        else:
            where = "most"
        most = max(self.memory, key=lambda name: self.memory[name])
        cached = "cache" in most or most == "targets"
        less = "fewer rollout.slots, a smaller rollout.batch_size or rollout.max_new_tokens" if cached else (
            "a larger mesh.tensor" + (", teacher.quantize=int8" if most == "teacher" else ", a larger mesh.fsdp")
        )  # fmt: skip
        share = self.memory[most] / 2**30
        return f"{where} of it is '{most}' ({share:.1f} GiB): try {less}, more chips, or mesh=find"

    def as_json(self) -> dict[str, Any]:
        """All figures; bytes and seconds."""
        programs = [] if self.whole is None else self.whole.programs
        return {
            "topology": self.target.name,
            "devices": self.target.count,
            "mesh": {name: getattr(self.sizes, name) for name in AXES},
            "fits": self.fits,
            "needed": self.needed,
            "limit": self.target.limit,
            "seconds": self.seconds,
            "compiled": self.whole is not None,
            "caches": None if self.whole is None else self.whole.caches,
            "programs": [
                {**dataclasses.asdict(program), "facts": program.facts and program.facts._asdict()}
                for program in programs
            ],
            "phases": [phase._asdict() for phase in self.phases],
            "memory": self.memory,
            "largest": self.largest,
        }


def planned(config: Config, target: Target) -> Plan:
    """The plan of a configuration with its own mesh."""
    section = config.mesh
    mesh = mesh_sizes({"data": section.data, "fsdp": section.fsdp, "tensor": section.tensor}, target.count)
    student, teacher = model_shapes(config)
    sizes = sizes_of(config, mesh, target.strayed)
    whole = None
    if target.devices is not None:
        whole = compile_programs(config, make_mesh(*mesh.values(), devices=target.devices))
    return Plan(
        config, target, sizes, phases(config, student, teacher, sizes, target.chip),
        memory(config, student, teacher, sizes), whole,
    )  # fmt: skip


def find_mesh(config: Config, target: Target, say: Say) -> Plan:
    """The plan with the fastest mesh, by arithmetic, that the compiler agrees fits; else the last that was tried."""
    found = candidates(config, target)
    if not found:
        raise UserError(
            f"no mesh of {target.count} devices cuts both models' heads and rollout.batch_size="
            f"{config.rollout.batch_size} evenly; change the batch, or the topology"
        )
    for mesh in found[:TRIES]:
        plan = planned(_with_mesh(config, mesh), target)
        words = "fits" if plan.fits else "no"
        say(f"mesh data {mesh['data']}, fsdp {mesh['fsdp']}, tensor {mesh['tensor']}: {words}")
        if plan.fits:
            break
    return plan


def candidates(config: Config, target: Target) -> list[dict[str, int]]:
    """Meshes that divide everything: those that fit by arithmetic, the fastest first; then the others, least first."""
    student, teacher = model_shapes(config)
    tensors = set(valid_tensor_sizes(*student.heads))
    if teacher is not None:
        tensors &= set(valid_tensor_sizes(*teacher.heads))
    found = []
    for tensor in tensors:
        for fsdp in range(1, target.count // tensor + 1):
            data, rest = divmod(target.count, tensor * fsdp)
            if rest or config.rollout.batch_size % (data * fsdp * config.optimizer.accumulate):
                continue
            mesh = {"data": data, "fsdp": fsdp, "tensor": tensor}
            sizes = sizes_of(config, mesh, target.strayed)
            needed = sum(memory(config, student, teacher, sizes).values())
            seconds = sum(phase.seconds for phase in phases(config, student, teacher, sizes, target.chip))
            tight = needed > SPARE * target.limit
            found.append((tight, needed if tight else seconds, list(mesh.items())))
    return [dict(mesh) for _, _, mesh in sorted(found)]


def _with_mesh(config: Config, mesh: dict[str, int]) -> Config:
    return config.model_copy(update={"mesh": config.mesh.model_copy(update=mesh)})


def _with_rollout(config: Config, **values: int) -> Config:
    return config.model_copy(update={"rollout": config.rollout.model_copy(update=values)})


def largest(plan: Plan, target: Target, say: Say, names: Collection[str] = ("batch_size", "max_new_tokens")) -> Plan:
    """The plan with the largest values of these rollout keys that fit, each with the others as they are."""
    config, sizes = plan.config, plan.sizes
    rollout = config.rollout
    student, teacher = model_shapes(config)
    positions = min(shape.max_positions for shape in (student, teacher) if shape is not None)
    rows = math.lcm(sizes.groups * config.optimizer.accumulate, rollout.samples_per_prompt)
    found = {}
    for name, start, step, most in (
        ("batch_size", rollout.batch_size, rows, 1 << 20),
        ("max_new_tokens", rollout.max_new_tokens, rollout.segment_tokens, positions - sizes.prompt),
    ):
        if name not in names:
            continue

        def needs(value: int, name: str = name) -> list[float]:
            tried = planned(_with_rollout(config, **{name: value}), target)
            say(f"rollout.{name}={value}: {tried.needed / 2**30:.1f} of {target.limit / 2**30:.1f} GiB a device")
            return tried.needs

        found[name] = _most(needs, plan.needs, start, step, most, target.limit)
        say(f"largest rollout.{name}: {found[name]}")
    return dataclasses.replace(plan, largest=found)


def _most(
    needs: Callable[[int], list[float]], at_start: list[float], start: int, step: int, most: int, limit: float
) -> int:
    """The largest multiple of `step` up to `most` whose needs(value) all stay below `limit`.

    Each of the needs is taken to grow in a straight line, drawn through `start` and its double; what the steepest of
    them allows is tried, and tried again nearer by.
    """
    best, other = start, min(start + max(start - start % step, step), most - most % step)
    if other <= start:
        return best
    tried = needs(other)
    if max(tried) <= limit:
        best = other
    for _ in range(TRIES - 1):
        slopes = [(new - old) / (other - start) for old, new in zip(at_start, tried, strict=True)]
        room = [(limit - old) / slope for old, slope in zip(at_start, slopes, strict=True) if slope > 0]
        guess = start + int(min([*room, most - start]))
        guess -= guess % step
        if guess <= best:
            break
        other, tried = guess, needs(guess)
        if max(tried) <= limit:
            return guess
    return best
