"""Where a rollout's seconds go. The loop is one program, so its phases can't be timed from outside while it runs.

Instead a few short rollouts of the same compiled program are timed once, before the first step: without the teacher,
with a listening one, and with a boundary that every step fails. They give what a turn of each kind costs; a step's
seconds are split in proportion to its turns times these costs. An estimate: it ignores that turns get dearer as texts
grow, which holds for all kinds alike.
"""

import dataclasses
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from motab_jax.models.transformer import Model
from motab_jax.rollout import Prompts, RolloutConfig
from motab_jax.rollout.counters import Counters
from motab_jax.rollout.monitor import NO_BOUNDARY


@dataclasses.dataclass(frozen=True)
class PhaseCosts:
    """Seconds: of a rollout's beginning, and of each turn more."""

    student_begin: float
    student_turn: float
    scoring_begin: float
    scoring_turn: float
    writing_turn: float

    def split(self, seconds: float, counters: Counters) -> dict[str, float]:
        """The seconds of a rollout by phase: student decode, teacher scoring, teacher writing."""
        turns = float(counters.student_iterations)
        shares = {
            "student_decode": self.student_begin + turns * self.student_turn,
            "teacher_scoring": self.scoring_begin + turns * self.scoring_turn,
            "teacher_writing": float(counters.teacher_iterations) * self.writing_turn,
        }
        total = sum(shares.values())
        return {name: seconds * share / total if total > 0 else 0.0 for name, share in shares.items()}


def split_off_policy(seconds: float, counters: Counters) -> dict[str, float]:
    """The same of a step whose text the student did not write: all of it the teacher's writing, or else its reading."""
    wrote, read = float(counters.teacher_iterations) > 0, float(counters.teacher_scored) > 0
    return {
        "student_decode": 0.0,
        "teacher_scoring": seconds if read and not wrote else 0.0,
        "teacher_writing": seconds if wrote else 0.0,
    }


def measure_phase_costs(
    program: Callable, student: Model, teacher: Model | None, prompts: Prompts, config: RolloutConfig
) -> PhaseCosts:
    """Time short rollouts of the compiled program; `config.skip_teacher` must be an array, `prompts.limits` too."""
    size = min(config.segment_tokens, config.max_new_tokens // 2)

    def timed(segments: int, *, skip_teacher: bool, strict: bool = False) -> float:
        bar = NO_BOUNDARY if config.monitor.alarm_is_high != strict else -NO_BOUNDARY
        numbers = dataclasses.replace(
            config, skip_teacher=jnp.array(skip_teacher), eps0=jnp.float32(bar), theta=jnp.float32(0.0)
        )
        short = prompts.replace(limits=jnp.full_like(prompts.limits, segments * size))
        return min(_seconds(program, student, teacher, short, numbers) for _ in range(3))

    one, two = timed(1, skip_teacher=True), timed(2, skip_teacher=True)
    turn = max(two - one, 0.0)
    heard = timed(1, skip_teacher=False)
    more = max(timed(2, skip_teacher=False) - heard - turn, 0.0) if config.monitor.enabled else 0.0
    strict = timed(1, skip_teacher=False, strict=True) if config.max_rewinds else heard
    return PhaseCosts(
        student_begin=max(one - turn, 0.0),
        student_turn=turn,
        scoring_begin=max(heard - one - more, 0.0),
        scoring_turn=more,
        writing_turn=max(strict - heard, 0.0),
    )


def _seconds(program: Callable, *arguments) -> float:
    student, teacher, prompts, config = arguments
    start = time.perf_counter()
    jax.block_until_ready(program(student, teacher, prompts, jax.random.key(0), config))
    return time.perf_counter() - start
