"""From the run's configuration to the rollout's `RolloutConfig`."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax.sharding import Mesh

from motab_jax.config import Config
from motab_jax.data.steps import compile_delimiter, compile_window
from motab_jax.rollout.config import BacktrackSpec, MonitorSpec, RolloutConfig, SamplingSpec, TargetSpec
from motab_jax.rollout.step_signals import ALARM_IS_HIGH
from motab_jax.runtime.mesh import platform_of


def teacher_rows(config: Config, mesh: Mesh) -> int:
    """Slots that the teacher decodes at a time; 0: all. By default a quarter of them on CPUs, where each row costs."""
    if config.backtrack.teacher_rows is not None:
        return config.backtrack.teacher_rows
    slots = config.rollout.slots or config.rollout.batch_size
    return slots // 4 if platform_of(mesh) == "cpu" else 0


def make_rollout_config(config: Config, pieces: list[bytes], stop_ids: Sequence[int], mesh: Mesh) -> RolloutConfig:
    """The engine's configuration.

    Args:
      config: the run's configuration.
      pieces: the bytes that each token id contributes to the text; their number is the vocabulary's size.
      stop_ids: token ids that end a completion.
      mesh: the devices; on CPUs some defaults differ.
    """
    rollout, monitor, backtrack = config.rollout, config.monitor, config.backtrack
    window = monitor.step_tokens
    return RolloutConfig(
        automaton=compile_window(window) if window else compile_delimiter(monitor.step_delimiter, pieces),
        stop_ids=jnp.asarray(stop_ids, jnp.int32),
        eps0=jnp.float32(monitor.eps0),
        theta=jnp.float32(monitor.theta if monitor.boundary == "entropy_adaptive" else 0.0),
        vocab_size=len(pieces),
        max_new_tokens=rollout.max_new_tokens,
        segment_tokens=rollout.segment_tokens,
        slots=rollout.slots,
        sampling=SamplingSpec(rollout.temperature, rollout.top_k, rollout.top_p),
        monitor=MonitorSpec(
            enabled=monitor.enabled,
            signal=monitor.signal,
            signal_top_k=monitor.top_k,
            entropy_top_k=monitor.entropy_top_k,
            alarm_is_high=monitor.signal in ALARM_IS_HIGH if monitor.alarm is None else monitor.alarm == "high",
            running_mean=monitor.boundary == "running_mean",
            patience=monitor.patience,
            first_token_certain=monitor.first_token_certain,
            window=window,
        ),
        backtrack=BacktrackSpec(
            target=backtrack.target,
            intervention=backtrack.intervention,
            teacher_steps=backtrack.steps,
            max_interventions=backtrack.max_interventions,
            max_discarded=backtrack.max_discarded_tokens,
            teacher_batch=backtrack.teacher_batch,
            teacher_rows=teacher_rows(config, mesh),
        ),
        targets=TargetSpec(rollout.targets, rollout.targets_k, rollout.targets_dtype),
        # Without the monitor the student generates alone, and the teacher scores finished completions in one pass.
        score_after=not monitor.enabled,
        skip_teacher=jnp.array(False),
    )
