"""Rows over devices: each group of devices, a cell of data x fsdp, rolls out rows of its own.

Rows never look at each other, so no group waits for another's turns, and nothing as large as a cache goes over the
links: caches, slots and logs stay where their rows are. Inside a group the weights are cut over `tensor` by the
compiler. A trajectory is the same whatever group it falls to.
"""

import dataclasses
from collections.abc import Callable

import jax
from jax.sharding import Mesh, PartitionSpec

from motab_jax.rollout.config import RolloutConfig
from motab_jax.rollout.counters import Counters
from motab_jax.rollout.trajectory import Trajectory
from motab_jax.runtime.mesh import BATCH_AXES, batch_shard_count

# Counted as the mean over groups, which iterate at the same time; all other counters are sums over groups.
MEANS = ("student_iterations", "teacher_iterations", "prefill_iterations", "packings")


def run_per_group(program: Callable, mesh: Mesh, by_row: tuple[bool, ...]) -> Callable:
    """The program (rollout, from_completions, ...), each group on its own rows.

    program(..., config) -> Trajectory takes the engine's numbers last. by_row: which of its other arguments lie over
    rows; the rest, weights and keys, are the same for all groups. slots and the thresholds of `config` are of all
    groups together. Columns and tokens are counted over all groups, turns as a group's mean.
    """
    groups = batch_shard_count(mesh)
    if mesh.size == 1:
        return program
    rows, whole = PartitionSpec(BATCH_AXES), PartitionSpec()
    given = tuple(rows if each else whole for each in (*by_row, False))
    found = Trajectory(**dict.fromkeys(Trajectory.__dataclass_fields__, rows))

    def local(*arguments) -> Trajectory:
        trajectory = program(*arguments[:-1], _share(arguments[-1], groups))
        return dataclasses.replace(trajectory, counters=_together(trajectory.counters))

    return jax.shard_map(
        local, mesh=mesh, in_specs=given, out_specs=dataclasses.replace(found, counters=whole),
        axis_names=set(BATCH_AXES), check_vma=False,
    )  # fmt: skip


def _share(config: RolloutConfig, groups: int) -> RolloutConfig:
    """The numbers of one group; 0 goes on to mean all."""
    backtrack = config.backtrack
    return config.replace(
        slots=-(-config.slots // groups),
        backtrack=dataclasses.replace(
            backtrack,
            teacher_batch=-(-backtrack.teacher_batch // groups),
            teacher_rows=-(-backtrack.teacher_rows // groups),
        ),
    )


def _together(counters: Counters) -> Counters:
    summed = jax.lax.psum(counters, BATCH_AXES)
    means = jax.lax.pmean(counters, BATCH_AXES)
    return summed.replace(**{name: getattr(means, name) for name in MEANS})
