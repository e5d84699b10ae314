"""A run's programs, compiled for a mesh of devices that need not exist, and what each of them needs there.

Ahead of time (aot): nothing is run. Left out: reading a program's text (hlo.py), and devices without libtpu's compiler,
for which there is only arithmetic (roofline.py).
"""

import dataclasses
import math
import os
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import jax
from jax.sharding import Mesh

from motab_jax.config import Config, UserError
from motab_jax.evaluation.programs import EvaluationPrograms
from motab_jax.models.transformer import Model, Params
from motab_jax.planning import hlo
from motab_jax.planning.abstract_session import (
    abstract_key,
    abstract_prompts,
    open_abstract_session,
)
from motab_jax.rollout.state import tape_columns
from motab_jax.runtime.mesh import bytes_per_device
from motab_jax.session.placement import PerWeightRelayout, teacher_serving
from motab_jax.session.session import Session
from motab_jax.training.programs import make_programs


@dataclasses.dataclass(frozen=True)
class CompiledProgram:
    """A program: what it needs on a device, in bytes, and what else is in memory while it runs."""

    name: str
    facts: hlo.ProgramFacts | None  # None: the compiler found that it does not fit
    other_live_bytes: int  # of the run's arrays that are no arguments of this program
    needed_bytes: int  # in all, `other_live_bytes` included
    compile_seconds: float


@dataclasses.dataclass(frozen=True)
class CompiledRun:
    """All programs of a run, in the order of a step, and the bytes of the rollout's caches on a device."""

    programs: list[CompiledProgram]
    cache_bytes: int


Pending = Callable[[], CompiledProgram]  # waits until the program is compiled


def compile_programs(config: Config, mesh: Mesh, memory: float | None = None) -> CompiledRun:
    """Compile every program of an on-policy run for the devices of a mesh.

    The rollout is one program: prefill of the prompts, decoding, the teacher's scoring and its interventions. So is an
    evaluation's generation, of as many completions at a time as the run would choose.

    Args:
      config: the run.
      mesh: the devices.
      memory: bytes of a device; None: not known.

    Raises:
      UserError: as `open_abstract_session`, and for a run in which the student never generates.
    """
    session = open_abstract_session(config, mesh)
    # A program keeps a core busy for minutes.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        pending: list[Pending] = []
        if session.teacher is not None:
            scan_layers, int8 = config.rollout.scan_layers, config.teacher.quantize == "int8"
            relayout = teacher_serving(mesh, session.teacher.config, scan_layers=scan_layers, int8=int8)
            compiled, teacher = _teacher_relayout(
                pool, relayout, session.teacher.params, other_live_bytes=_model_bytes(session.student)
            )
            session = dataclasses.replace(session, teacher=teacher)
            pending.append(compiled)
        programs = make_programs(session, memory=memory)
        if programs.on_policy is None:
            raise UserError("only runs with on-policy steps are planned: rollout.on_policy is 0")
        params, head = programs.state.params, programs.teacher_head
        state_bytes, teacher_bytes = bytes_per_device(programs.state), _model_bytes(session.teacher)
        other = state_bytes - bytes_per_device(params) + teacher_bytes
        compiled, student = _compile(pool, "relayout", session.to_serving, (params,), other)
        pending.append(compiled)
        prompts, key = abstract_prompts(config, mesh, config.rollout.batch_size), abstract_key(mesh)
        caches = _caches(session, student, tape_columns(prompts.tokens.shape[1], session.rollout_config))
        arguments = (student, session.teacher, prompts, key, session.rollout_config)
        compiled, trajectory = _compile(pool, "rollout", programs.on_policy, arguments, state_bytes, list(caches))
        pending.append(compiled)
        other = teacher_bytes - _model_bytes(head)
        compiled, _ = _compile(pool, "update", programs.update, (programs.state, head, trajectory), other)
        pending.append(compiled)
        if programs.evaluation is not None:
            pending += _evaluation(pool, session, programs.evaluation, student, state_bytes)
        arrays = jax.tree.leaves(programs.state)
        compiled, _ = _compile(pool, "digest", programs.digest, (arrays,), teacher_bytes)
        pending.append(compiled)
        cache_bytes = sum(2 * math.prod(dims) * itemsize for dims, itemsize in caches.items())
        return CompiledRun([wait() for wait in pending], cache_bytes)


def _evaluation(
    pool: Executor, session: Session, programs: EvaluationPrograms, student: Model, state_bytes: int
) -> list[Pending]:
    """The evaluation's programs; the training state is in memory meanwhile, and the teacher."""
    scores = programs.reverse_kl is not None
    teacher, idle = session.teacher if scores else None, 0 if scores else _model_bytes(session.teacher)
    prompts, key = abstract_prompts(session.config, session.mesh, programs.rows), abstract_key(session.mesh)
    arguments = (student, teacher, prompts, key, programs.rollout_config)
    compiled, trajectory = _compile(pool, "evaluation", programs.generate, arguments, state_bytes + idle)
    if programs.reverse_kl is None:
        return [compiled]
    arguments = (student, teacher, trajectory)
    reverse_kl, _ = _compile(pool, "evaluation's reverse KL", programs.reverse_kl, arguments, state_bytes)
    return [compiled, reverse_kl]


def _caches(session: Session, student: Model, columns: int) -> dict[hlo.Dims, int]:
    """Dimensions of each model's cache on a device, and the bytes of an element."""
    mesh, config = session.mesh.shape, session.rollout_config
    slots = config.slots or session.config.rollout.batch_size
    rows = -(-slots // (mesh["data"] * mesh["fsdp"]))
    models = (student, None if config.teacher_scores_after else session.teacher)
    return {
        (
            model.config.num_layers, rows, max(model.config.num_kv_heads // mesh["tensor"], 1), columns,
            model.config.head_dim,
        ): model.dtype.itemsize
        for model in models
        if model is not None
    }  # fmt: skip


def _model_bytes(model: Model | None) -> int:
    """Bytes of its weights on each device."""
    return 0 if model is None else bytes_per_device(model.params)


def _teacher_relayout(
    pool: Executor, relayout: PerWeightRelayout, params: Params, other_live_bytes: int
) -> tuple[Pending, Model]:
    """The teacher's relayout, all of its programs together, and the shapes that they give."""
    before, pending, results = bytes_per_device(params), {}, {}
    for weight, program in relayout.programs.items():
        pending[weight], results[weight] = _compile(pool, "teacher relayout", program, (params,), other_live_bytes)
    after = bytes_per_device(results)

    def wait() -> CompiledProgram:
        compiled = []
        for weight, wait_for_weight in pending.items():
            program = wait_for_weight()
            # The other weights are in memory as well, in one form and at worst in both.
            others = after - bytes_per_device(results[weight])
            others += 0 if program.facts is None else before - program.facts.arguments
            compiled.append(
                dataclasses.replace(
                    program,
                    other_live_bytes=program.other_live_bytes + others,
                    needed_bytes=program.needed_bytes + others,
                )
            )
        return _in_sequence(compiled)

    return wait, relayout.assemble(results)


def _in_sequence(programs: list[CompiledProgram]) -> CompiledProgram:
    """Programs that run one after the other, as one: the memory of the fullest, the instructions of all."""
    fullest = max(programs, key=lambda program: program.needed_bytes)
    seconds = sum(program.compile_seconds for program in programs)
    facts = [program.facts for program in programs if program.facts is not None]
    if fullest.facts is None:
        return dataclasses.replace(fullest, compile_seconds=seconds)
    together = fullest.facts._replace(
        copies=sum(program.copies for program in facts),
        scatters=sum(program.scatters for program in facts),
        collectives=dict(sum((Counter(program.collectives) for program in facts), Counter())),
        collective_bytes=dict(sum((Counter(program.collective_bytes) for program in facts), Counter())),
    )
    return dataclasses.replace(fullest, facts=together, compile_seconds=seconds)


def _compile(
    pool: Executor,
    name: str,
    program: Any,
    arguments: tuple[Any, ...],
    other_live_bytes: int,
    caches: list[hlo.Dims] | None = None,
) -> tuple[Pending, Any]:
    """Begin to compile a jitted function for arguments of these shapes.

    Returns what waits for the compiled program, and the shapes of the program's results.
    """
    lowered = program.lower(*arguments)

    def work() -> CompiledProgram:
        began = time.perf_counter()
        try:
            facts = hlo.program_facts(lowered.compile(), caches or ())
            needed = facts.needed_bytes + other_live_bytes
        except jax.errors.JaxRuntimeError as error:
            memory = hlo.out_of_memory(error)
            if memory is None:
                raise
            amount, temporaries_alone = memory
            facts = None
            needed = round(amount) + other_live_bytes + (bytes_per_device(arguments) if temporaries_alone else 0)
        return CompiledProgram(name, facts, other_live_bytes, needed, time.perf_counter() - began)

    return pool.submit(work).result, lowered.out_info
