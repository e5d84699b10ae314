"""A run's programs, compiled for a mesh of devices that need not exist, and what each of them needs there."""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import jax

from motab_jax.config import Config
from motab_jax.models.transformer import Model
from motab_jax.programs import make_programs
from motab_jax.rollout.state import tape_columns
from motab_jax.runtime import ahead
from motab_jax.session import Session, serving
from motab_jax.shapes import bytes_on_a_device, open_shapes, shape_of_key, shape_of_prompts

Dims = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A program: what it needs on a device, in bytes, and what else lies there meanwhile."""

    name: str
    facts: ahead.Facts | None  # None: the compiler found that it does not fit
    beside: int  # bytes of the run's other arrays
    needed: int  # bytes in all, `beside` included
    seconds: float  # of compiling


@dataclasses.dataclass(frozen=True)
class Whole:
    """All programs of a run, in the order of a step, and the bytes of the rollout's caches on a device."""

    programs: list[Compiled]
    caches: int


def compile_programs(config: Config, mesh: Any) -> Whole:
    """Every program of an on-policy run.

    The rollout holds the reading of prompts, decoding, the teacher's scoring and its writing: they are one program.
    """
    session, found = open_shapes(config, mesh), []
    if session.teacher is not None:
        relay = serving(mesh, session.teacher.config, config, int8=config.teacher.quantize == "int8")
        beside = bytes_on_a_device(session.student.params)
        teacher = _add(found, "teacher relayout", relay, (session.teacher.params,), beside)
        session = dataclasses.replace(session, teacher=teacher)
    programs = make_programs(session)
    params, state, head = programs.state.params, bytes_on_a_device(programs.state), programs.teacher_head
    held = _size(session.teacher)
    student = _add(found, "relayout", session.serving, (params,), state - bytes_on_a_device(params) + held)
    prompts, key = shape_of_prompts(config, mesh), shape_of_key(mesh)
    caches = _caches(session, student, tape_columns(prompts, session.rollout))
    arguments = (student, session.teacher, prompts, key, session.rollout)
    trajectory = _add(found, "rollout", programs.rollout, arguments, state, list(caches))
    _add(found, "update", programs.update, (programs.state, head, trajectory), held - _size(head))
    return Whole(found, sum(2 * math.prod(dims) * size for dims, size in caches.items()))


def _caches(session: Session, student: Model, columns: int) -> dict[Dims, int]:
    """Dimensions of each model's cache on a device, and the bytes of an element."""
    shape, numbers = session.mesh.shape, session.rollout
    slots = numbers.slots or session.config.rollout.batch_size
    found = {}
    for model in (student, None if numbers.teacher_is_out else session.teacher):
        if model is not None:
            heads = max(model.config.num_kv_heads // shape["tensor"], 1)
            rows = slots // (shape["data"] * shape["fsdp"])
            found[model.config.num_layers, rows, heads, columns, model.config.head_dim] = model.dtype.itemsize
    return found


def _size(model: Model | None) -> int:
    return 0 if model is None else bytes_on_a_device(model.params)


def _add(found: list, name: str, program: Callable, arguments: tuple, beside: int, caches=()) -> Any:
    """Compile a program for these shapes and note what it needs; returns the shapes of what it gives."""
    began = time.perf_counter()
    lowered = program.lower(*arguments)
    try:
        facts = ahead.facts(lowered.compile(), caches)
        needed = facts.held + beside
    except jax.errors.JaxRuntimeError as error:
        memory = ahead.out_of_memory(error)
        if memory is None:
            raise
        amount, spare = memory
        facts, needed = None, round(amount) + beside + (bytes_on_a_device(arguments) if spare else 0)
    found.append(Compiled(name, facts, beside, needed, time.perf_counter() - began))
    return lowered.out_info
