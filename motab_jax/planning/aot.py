"""A run's programs, compiled for a mesh of devices that need not exist, and what each of them needs there."""

import dataclasses
import math
import os
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import jax

from motab_jax.config import Config
from motab_jax.models.transformer import Model, Params
from motab_jax.planning import hlo
from motab_jax.planning.abstract_session import bytes_on_a_device, open_shapes, shape_of_key, shape_of_prompts
from motab_jax.rollout.state import tape_columns
from motab_jax.session.placement import PerWeightRelayout, teacher_serving
from motab_jax.session.session import Session
from motab_jax.training.programs import make_programs

Dims = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A program: what it needs on a device, in bytes, and what else lies there meanwhile."""

    name: str
    facts: hlo.Facts | None  # None: the compiler found that it does not fit
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
    session = open_shapes(config, mesh)
    # A program keeps a core busy for minutes.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        begun = []
        if session.teacher is not None:
            by_weight, beside = (
                teacher_serving(
                    mesh,
                    session.teacher.config,
                    scan_layers=config.rollout.scan_layers,
                    int8=config.teacher.quantize == "int8",
                ),
                _size(session.student),
            )
            relay, teacher = _teacher_relayout(pool, by_weight, session.teacher.params, beside)
            session = dataclasses.replace(session, teacher=teacher)
            begun.append(relay)
        programs = make_programs(session)
        params, state, head = programs.state.params, bytes_on_a_device(programs.state), programs.teacher_head
        held = _size(session.teacher)
        beside = state - bytes_on_a_device(params) + held
        relay, student = _start(pool, "relayout", session.serving, (params,), beside)
        prompts, key = shape_of_prompts(config, mesh), shape_of_key(mesh)
        caches = _caches(session, student, tape_columns(prompts, session.rollout))
        arguments = (student, session.teacher, prompts, key, session.rollout)
        write, trajectory = _start(pool, "rollout", programs.rollout, arguments, state, list(caches))
        arguments = (programs.state, head, trajectory)
        update, _ = _start(pool, "update", programs.update, arguments, held - _size(head))
        return Whole(
            [ended() for ended in (*begun, relay, write, update)],
            sum(2 * math.prod(dims) * size for dims, size in caches.items()),
        )


def _caches(session: Session, student: Model, columns: int) -> dict[Dims, int]:
    """Dimensions of each model's cache on a device, and the bytes of an element."""
    shape, numbers = session.mesh.shape, session.rollout
    slots = numbers.slots or session.config.rollout.batch_size
    found = {}
    for model in (student, None if numbers.teacher_scores_after else session.teacher):
        if model is not None:
            heads = max(model.config.num_kv_heads // shape["tensor"], 1)
            rows = slots // (shape["data"] * shape["fsdp"])
            found[model.config.num_layers, rows, heads, columns, model.config.head_dim] = model.dtype.itemsize
    return found


def _size(model: Model | None) -> int:
    return 0 if model is None else bytes_on_a_device(model.params)


def _teacher_relayout(
    pool: Executor, relay: PerWeightRelayout, params: Params, beside: int
) -> tuple[Callable[[], Compiled], Model]:
    """The teacher's relayout, all of its programs together, and the shapes that they give."""
    name, before = "teacher relayout", bytes_on_a_device(params)
    begun, given = [], {}
    for weight, program in relay.programs.items():
        compiled, given[weight] = _start(pool, name, program, (params,), beside)
        begun.append((compiled, weight))
    after = bytes_on_a_device(given)

    def ended() -> Compiled:
        found = []
        for compiled, weight in begun:
            part = compiled()
            # The other weights lie there as well, in one form and at worst in both.
            others = after - bytes_on_a_device(given[weight])
            others += 0 if part.facts is None else before - part.facts.arguments
            found.append(dataclasses.replace(part, beside=part.beside + others, needed=part.needed + others))
        return _together(found)

    return ended, relay.assembled(given)


def _together(parts: list[Compiled]) -> Compiled:
    """Programs that run one after the other, as one: the memory of the fullest, the text of all."""
    fullest, seconds = max(parts, key=lambda part: part.needed), sum(part.seconds for part in parts)
    every = [part.facts for part in parts if part.facts is not None]
    if fullest.facts is None:
        return dataclasses.replace(fullest, seconds=seconds)
    facts = fullest.facts._replace(
        copies=sum(each.copies for each in every),
        scatters=sum(each.scatters for each in every),
        collectives=dict(sum((Counter(each.collectives) for each in every), Counter())),
        moved=dict(sum((Counter(each.moved) for each in every), Counter())),
    )
    return dataclasses.replace(fullest, facts=facts, seconds=seconds)


def _start(
    pool: Executor, name: str, program: Callable, arguments: tuple, beside: int, caches=()
) -> tuple[Callable[[], Compiled], Any]:
    """Begin to compile a program for these shapes: what waits for what it needs, and the shapes of what it gives."""
    lowered = program.lower(*arguments)

    def compile_it() -> Compiled:
        began = time.perf_counter()
        try:
            facts = hlo.facts(lowered.compile(), caches)
            needed = facts.held + beside
        except jax.errors.JaxRuntimeError as error:
            memory = hlo.out_of_memory(error)
            if memory is None:
                raise
            amount, spare = memory
            facts, needed = None, round(amount) + beside + (bytes_on_a_device(arguments) if spare else 0)
        return Compiled(name, facts, beside, needed, time.perf_counter() - began)

    return pool.submit(compile_it).result, lowered.out_info
