"""Rows over devices: each group of devices (one index of data and fsdp) rolls out rows of its own.

Rows are independent, so no group waits for another's iterations and no cache crosses a link: caches, slots and logs
stay where their rows are. Inside a group the compiler shards the weights over `tensor`. A trajectory is the same in
whatever group its row is.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

from motab_jax.rollout.config import RolloutConfig
from motab_jax.rollout.counters import Counters
from motab_jax.rollout.trajectory import Trajectory
from motab_jax.runtime.mesh import BATCH_AXES, batch_shard_count

# Counted as the mean over groups, which iterate at the same time; all other counters are sums over groups.
MEANS = ("student_iterations", "teacher_iterations", "prefill_iterations", "packings")


def run_per_group(
    program: Callable[..., Trajectory], mesh: Mesh, by_row: tuple[bool, ...]
) -> Callable[..., Trajectory]:
    """A function that runs a program in each group, on the group's own rows.

    Args:
      program: (..., config) -> Trajectory, such as `rollout`.
      mesh: the devices.
      by_row: which of the program's other arguments are sharded over rows; weights and keys are the same in all.

    Returns:
      A function with the program's arguments. slots, teacher_batch and teacher_rows of its config are those of all
      groups together; so are its counters, except iterations and packings, which are the groups' mean.
    """
    if mesh.size == 1:
        return program
    groups = batch_shard_count(mesh)
    rows, same = PartitionSpec(BATCH_AXES), PartitionSpec()
    fields: dict[str, Any] = dict.fromkeys(Trajectory.__dataclass_fields__, rows) | {"counters": same}

    def local(*arguments) -> Trajectory:
        result = program(*arguments[:-1], _config_of_group(arguments[-1], groups))
        return dataclasses.replace(result, counters=_reduce(result.counters))

    return jax.shard_map(
        local, mesh=mesh, in_specs=tuple(rows if sharded else same for sharded in (*by_row, False)),
        out_specs=Trajectory(**fields), axis_names=set(BATCH_AXES), check_vma=False,
    )  # fmt: skip


def _config_of_group(config: RolloutConfig, groups: int) -> RolloutConfig:
    """The config with a group's share of the slots, rounded up; 0 still means all."""

    def share(total: int) -> int:
        return -(-total // groups)

    backtrack = dataclasses.replace(
        config.backtrack,
        teacher_batch=share(config.backtrack.teacher_batch),
        teacher_rows=share(config.backtrack.teacher_rows),
    )
    return config.replace(slots=share(config.slots), backtrack=backtrack)


def _reduce(counters: Counters) -> Counters:
    """The counters over all groups."""
    sums, means = jax.lax.psum(counters, BATCH_AXES), jax.lax.pmean(counters, BATCH_AXES)
    return sums.replace(**{name: getattr(means, name) for name in MEANS})
