"""Where a rollout's seconds go: an estimate by phase, from a few short rollouts that are timed before the first step.

The rollout is one program, so its phases can't be timed from outside while it runs. The same compiled program is timed
without the teacher, with the teacher scoring, and with a boundary that makes every step stray. The differences are the
seconds of an iteration of each kind; a step's seconds are split in proportion to its iterations times these costs.
Left out: iterations cost more as rows grow, for all kinds alike.
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
    """Seconds of a rollout's beginning (prefill and the first iteration) and of each further iteration, by phase."""

    student_begin: float
    student_iteration: float
    scoring_begin: float
    scoring_iteration: float
    teacher_iteration: float

    def split(self, seconds: float, counters: Counters) -> dict[str, float]:
        """Split the seconds of a rollout into student_decode, teacher_scoring and teacher_writing."""
        iterations = float(counters.student_iterations)
        shares = {
            "student_decode": self.student_begin + iterations * self.student_iteration,
            "teacher_scoring": self.scoring_begin + iterations * self.scoring_iteration,
            "teacher_writing": float(counters.teacher_iterations) * self.teacher_iteration,
        }
        total = sum(shares.values())
        return {name: seconds * share / total if total > 0 else 0.0 for name, share in shares.items()}


def split_off_policy(seconds: float, counters: Counters) -> dict[str, float]:
    """`PhaseCosts.split` of an off-policy step: all seconds are the teacher's, of generating or else of scoring."""
    generated, scored = float(counters.teacher_iterations) > 0, float(counters.teacher_scored) > 0
    return {
        "student_decode": 0.0,
        "teacher_scoring": seconds if scored and not generated else 0.0,
        "teacher_writing": seconds if generated else 0.0,
    }


def measure_phase_costs(
    program: Callable, student: Model, teacher: Model | None, prompts: Prompts, config: RolloutConfig
) -> PhaseCosts:
    """Time short rollouts of the compiled program.

    Args:
      program: the on-policy rollout, jitted: (student, teacher, prompts, key, config) -> trajectories.
      student: in the serving layout.
      teacher: in the serving layout, or None.
      prompts: a batch; its limits are set, so that shorter ones need no other program.
      config: the engine's; `skip_teacher` is set, for the same reason.

    Returns:
      The seconds of each phase.
    """
    size = min(config.segment_tokens, config.max_new_tokens // 2)

    def timed(segments: int, *, skip_teacher: bool, all_stray: bool = False) -> float:
        eps0 = NO_BOUNDARY if config.monitor.alarm_is_high != all_stray else -NO_BOUNDARY
        short_config = dataclasses.replace(
            config, skip_teacher=jnp.array(skip_teacher), eps0=jnp.float32(eps0), theta=jnp.float32(0.0)
        )
        limits = jnp.full_like(prompts.lengths, segments * size)
        short = prompts.replace(limits=limits if prompts.limits is None else jnp.minimum(prompts.limits, limits))
        return min(_seconds(program, student, teacher, short, short_config) for _ in range(3))

    alone = timed(1, skip_teacher=True)
    iteration = max(timed(2, skip_teacher=True) - alone, 0.0)
    scored = timed(1, skip_teacher=False)
    scoring = max(timed(2, skip_teacher=False) - scored - iteration, 0.0) if config.monitor.enabled else 0.0
    with_intervention = timed(1, skip_teacher=False, all_stray=True) if config.max_rewinds else scored
    return PhaseCosts(
        student_begin=max(alone - iteration, 0.0),
        student_iteration=iteration,
        scoring_begin=max(scored - alone - scoring, 0.0),
        scoring_iteration=scoring,
        teacher_iteration=max(with_intervention - scored, 0.0),
    )


def _seconds(
    program: Callable, student: Model, teacher: Model | None, prompts: Prompts, config: RolloutConfig
) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    jax.block_until_ready(program(student, teacher, prompts, jax.random.key(0), config))
    return time.perf_counter() - start
