"""A plan: what a run needs on a topology; and the search for a mesh, a batch and a length that fit.

Left out: how a plan is shown (tables.py).
"""

import dataclasses
import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, Self

from motab_jax.config import Config, UserError
from motab_jax.planning.abstract_session import model_configs
from motab_jax.planning.aot import CompiledProgram, CompiledRun, compile_programs
from motab_jax.planning.roofline import PhaseCost, StepSizes, memory_by_arithmetic, step_costs, step_sizes
from motab_jax.planning.topologies import CHIPS, Chip, topology_devices
from motab_jax.runtime.mesh import AXES, make_mesh, mesh_sizes, valid_tensor_sizes

USABLE_SHARE = 0.98  # of a device's memory: its runtime keeps the rest
ARITHMETIC_SHARE = 0.8  # of the usable memory, for what arithmetic counts: temporaries need the rest
TRIES = 3  # meshes that are compiled, or lengths
Say = Callable[[str], None]
ADVICE = {  # what makes each program smaller
    "teacher relayout": "a larger mesh.tensor",
    "relayout": "a larger mesh.tensor, rollout.serve_dtype=bfloat16",
    "evaluation": "a smaller eval.batch_size or eval.max_new_tokens, a larger mesh.tensor",
    "evaluation's reverse KL": "a smaller eval.batch_size, eval.reverse_kl=false",
    "digest": "a larger mesh.fsdp or mesh.tensor",
    "update": "optimizer.remat=full, optimizer.compute_dtype=bfloat16, a larger mesh.fsdp or mesh.tensor, "
    "a smaller rollout.max_new_tokens",
}


@dataclasses.dataclass(frozen=True)
class Target:
    """The devices that are planned for."""

    name: str
    chip: Chip
    count: int
    devices: list[Any] | None  # None: nothing can be compiled for them here
    teacher_share: float  # of the tokens, from 0 to 1, that the teacher is taken to generate

    @classmethod
    def of(cls, topology: str, teacher_share: float) -> Self:
        """The devices of a topology.

        Args:
          topology: such as v5p:4x4x4 or gpu:h100x8.
          teacher_share: share of the tokens, from 0 to 1, that the teacher is taken to generate.

        Raises:
          UserError: another name, or a TPU without libtpu.
        """
        gpu = re.fullmatch(r"gpu:(h100|h200)x(\d+)", topology)
        if gpu is not None and int(gpu[2]):
            return cls(topology, CHIPS[gpu[1]], int(gpu[2]), None, teacher_share)
        name = topology.split(":")[0]
        if name not in CHIPS or name.startswith("h"):
            chips = ", ".join(name for name in CHIPS if not name.startswith("h"))
            raise UserError(
                f"topology={topology}: give one of {chips} with its shape, such as v5p:4x4x4, or gpu:h100x8"
            )
        devices = topology_devices(topology)
        return cls(topology, CHIPS[name], len(devices), devices, teacher_share)

    @property
    def limit(self) -> float:
        """Bytes of a device that a run may use."""
        return USABLE_SHARE * self.chip.memory


@dataclasses.dataclass(frozen=True)
class Plan:
    """The memory and the time that a configuration needs on a target."""

    config: Config
    target: Target
    sizes: StepSizes
    costs: list[PhaseCost]
    memory: dict[str, float]  # bytes on a device by arithmetic
    compiled: CompiledRun | None  # None: the target has no compiler here
    largest: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def programs(self) -> list[CompiledProgram]:
        """The compiled programs; none where the target has no compiler here."""
        return [] if self.compiled is None else self.compiled.programs

    @property
    def needs(self) -> list[float]:
        """Bytes of a device while each program runs; without a compiler, one number by arithmetic."""
        if self.compiled is None:
            return [sum(self.memory.values())]
        return [float(program.needed_bytes) for program in self.programs]

    @property
    def needed(self) -> float:
        """The most bytes of a device that any program needs."""
        return max(self.needs)

    @property
    def fits(self) -> bool:
        """Whether every program fits a device."""
        return self.needed <= self.target.limit

    @property
    def seconds(self) -> float:
        """Of a step, at the least."""
        return sum(cost.seconds for cost in self.costs)

    @property
    def verdict(self) -> str:
        """The plan in a sentence, with what to change where it does not fit."""
        figures = f"{self.needed / 2**30:.1f} of {self.target.limit / 2**30:.1f} GiB a device"
        if self.compiled is None:
            figures += ", by arithmetic, without temporaries"
        if self.fits:
            slowest = max(self.costs, key=lambda cost: cost.seconds)
            share = slowest.seconds / self.seconds
            return (
                f"fits: {figures}; a step takes at least {self.seconds:.3g} s, "
                f"{100 * share:.0f}% of them '{slowest.name}' (bound by {slowest.bound_by})"
            )
        return f"does not fit: {figures}; {self._advice()}"

    def _advice(self) -> str:
        if self.programs:
            fullest = max(self.programs, key=lambda program: program.needed_bytes)
            other = fullest.other_live_bytes
            own = fullest.needed_bytes - other
            where = f"the program '{fullest.name}' needs {own / 2**30:.1f} GiB, other arrays {other / 2**30:.1f} GiB"
            if fullest.name != "rollout":
                return f"{where}: try {ADVICE[fullest.name]}, more chips, or mesh=find"
            where += "; most"
        else:
            where = "most"
        largest = max(self.memory, key=lambda name: self.memory[name])
        if "cache" in largest or largest == "targets":
            less = "fewer rollout.slots, a smaller rollout.batch_size or rollout.max_new_tokens"
        else:
            less = "a larger mesh.tensor" + (
                ", teacher.quantize=int8" if largest == "teacher" else ", a larger mesh.fsdp"
            )
        share = self.memory[largest] / 2**30
        return f"{where} of it is '{largest}' ({share:.1f} GiB): try {less}, more chips, or mesh=find"

    def as_json(self) -> dict[str, Any]:
        """All figures, in bytes and seconds. The keys are read by other programs and stay as they are."""
        return {
            "topology": self.target.name,
            "devices": self.target.count,
            "mesh": {name: getattr(self.sizes, name) for name in AXES},
            "fits": self.fits,
            "needed": self.needed,
            "limit": self.target.limit,
            "seconds": self.seconds,
            "compiled": self.compiled is not None,
            "caches": None if self.compiled is None else self.compiled.cache_bytes,
            "programs": [_program_json(program) for program in self.programs],
            "phases": [
                {
                    "name": cost.name, "flops": cost.flops, "bytes": cost.bytes, "linked": cost.link_bytes,
                    "seconds": cost.seconds, "binds": cost.bound_by,
                }
                for cost in self.costs
            ],
            "memory": self.memory,
            "largest": self.largest,
        }  # fmt: skip


def _program_json(program: CompiledProgram) -> dict[str, Any]:
    facts = None
    if program.facts is not None:
        facts = program.facts._asdict()
        facts["moved"] = facts.pop("collective_bytes")
    return {
        "name": program.name, "facts": facts, "beside": program.other_live_bytes, "needed": program.needed_bytes,
        "seconds": program.compile_seconds,
    }  # fmt: skip


def make_plan(config: Config, target: Target) -> Plan:
    """The plan of a configuration with its own mesh."""
    section = config.mesh
    mesh = mesh_sizes({"data": section.data, "fsdp": section.fsdp, "tensor": section.tensor}, target.count)
    student, teacher = model_configs(config)
    sizes = step_sizes(config, mesh, target.teacher_share)
    compiled = None
    if target.devices is not None:
        compiled = compile_programs(config, make_mesh(*mesh.values(), devices=target.devices), target.limit)
    return Plan(
        config, target, sizes, step_costs(student, teacher, sizes, target.chip),
        memory_by_arithmetic(student, teacher, sizes), compiled,
    )  # fmt: skip


def find_mesh(config: Config, target: Target, say: Say) -> Plan:
    """The plan with the fastest mesh, by arithmetic, that the compiler agrees fits; else the last that was tried.

    Args:
      config: the run; its mesh is replaced.
      target: the devices.
      say: called with a line for each mesh that was tried.

    Raises:
      UserError: no mesh divides both models' heads.
    """
    plan = None
    for mesh in candidate_meshes(config, target)[:TRIES]:
        plan = make_plan(_with_mesh(config, mesh), target)
        say(f"mesh data {mesh['data']}, fsdp {mesh['fsdp']}, tensor {mesh['tensor']}: {'fits' if plan.fits else 'no'}")
        if plan.fits:
            break
    if plan is None:
        raise UserError(f"no mesh of {target.count} devices divides both models' heads; give another topology")
    return plan


def candidate_meshes(config: Config, target: Target) -> list[dict[str, int]]:
    """Meshes that divide both models' heads: fastest first; those that don't fit by arithmetic come last."""
    student, teacher = model_configs(config)
    tensors = set(valid_tensor_sizes(*student.heads))
    if teacher is not None:
        tensors &= set(valid_tensor_sizes(*teacher.heads))
    ranked = []
    for tensor in tensors:
        for fsdp in range(1, target.count // tensor + 1):
            data, rest = divmod(target.count, tensor * fsdp)
            if rest:
                continue
            mesh = {"data": data, "fsdp": fsdp, "tensor": tensor}
            sizes = step_sizes(config, mesh, target.teacher_share)
            needed = sum(memory_by_arithmetic(student, teacher, sizes).values())
            seconds = sum(cost.seconds for cost in step_costs(student, teacher, sizes, target.chip))
            tight = needed > ARITHMETIC_SHARE * target.limit
            ranked.append((tight, needed if tight else seconds, list(mesh.items())))
    return [dict(mesh) for _, _, mesh in sorted(ranked)]


def _with_mesh(config: Config, mesh: Mapping[str, int]) -> Config:
    return config.model_copy(update={"mesh": config.mesh.model_copy(update=mesh)})


def _with_rollout(config: Config, **values: int) -> Config:
    return config.model_copy(update={"rollout": config.rollout.model_copy(update=values)})


def find_largest(plan: Plan, say: Say, names: Collection[str] = ("batch_size", "max_new_tokens")) -> Plan:
    """The plan with the largest values of these rollout keys that fit, each with the others as they are.

    Args:
      plan: a plan that fits.
      say: called with a line for each value that was tried.
      names: the keys, of batch_size and max_new_tokens.
    """
    config, sizes, target = plan.config, plan.sizes, plan.target
    rollout = config.rollout
    student, teacher = model_configs(config)
    positions = min(model.max_positions for model in (student, teacher) if model is not None)
    rows = math.lcm(sizes.groups * config.optimizer.accumulate, rollout.samples_per_prompt)
    largest = {}
    for name, start, step, most in (
        ("batch_size", rollout.batch_size, rows, 1 << 20),
        ("max_new_tokens", rollout.max_new_tokens, rollout.segment_tokens, positions - sizes.prompt),
    ):
        if name not in names:
            continue

        def needs(value: int, name: str = name) -> list[float]:
            tried = make_plan(_with_rollout(config, **{name: value}), target)
            say(f"rollout.{name}={value}: {tried.needed / 2**30:.1f} of {target.limit / 2**30:.1f} GiB a device")
            return tried.needs

        largest[name] = largest_that_fits(needs, plan.needs, start, step, most, target.limit)
        say(f"largest rollout.{name}: {largest[name]}")
    return dataclasses.replace(plan, largest=largest)


def largest_that_fits(
    needs: Callable[[int], list[float]], at_start: list[float], start: int, step: int, most: int, limit: float
) -> int:
    """The largest multiple of `step` for which no program needs more than `limit`; `start`, if no larger one fits.

    Each program's need is taken to grow linearly, along the line through `start` and its double. What the steepest
    line allows is tried; where it does not fit, the line through that point is, up to TRIES values in all.

    Args:
      needs: the bytes that each program needs with a value.
      at_start: the same for `start`, known to fit.
      start: the value to begin with.
      step: values are its multiples.
      most: no value is above it.
      limit: bytes.

    >>> largest_that_fits(lambda value: [3.0 * value, 50.0], [24.0, 50.0], start=8, step=4, most=1000, limit=100.0)
    32
    """
    best, other = start, min(start + max(start - start % step, step), most - most % step)
    if other <= start:
        return best
    tried = needs(other)
    if max(tried) <= limit:
        best = other
    for _ in range(TRIES - 1):
        rates = [(new - old) / (other - start) for old, new in zip(at_start, tried, strict=True)]
        room = [(limit - old) / rate for old, rate in zip(at_start, rates, strict=True) if rate > 0]
        guess = start + int(min([*room, most - start]))
        guess -= guess % step
        if guess <= best:
            break
        other, tried = guess, needs(guess)
        if max(tried) <= limit:
            return guess
    return best
