"""Exchange between the processes of a run: sharded arrays, flags and numbers. With one process nothing is sent.

All processes must call these functions in the same order. Left out: how they find each other (distributed.py).
"""

import functools
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from motab_jax.runtime.mesh import replicated


def fetch(tree: Any, mesh: Mesh) -> Any:
    """A tree of arrays as NumPy arrays on every host; arrays that are sharded over several hosts are gathered.

    Args:
      tree: of arrays over the mesh, NumPy arrays and numbers.
      mesh: the devices of all hosts.
    """
    leaves, structure = jax.tree.flatten(tree)
    remote = [n for n, x in enumerate(leaves) if isinstance(x, jax.Array) and not _is_local(x)]
    if remote:
        for n, gathered in zip(remote, _gather(mesh)([leaves[n] for n in remote]), strict=True):
            leaves[n] = gathered
    return jax.device_get(jax.tree.unflatten(structure, leaves))


def _is_local(x: jax.Array) -> bool:
    """Whether this host has all of the array."""
    return x.is_fully_addressable or x.is_fully_replicated


@functools.cache
def _gather(mesh: Mesh):
    return jax.jit(lambda arrays: arrays, out_shardings=replicated(mesh))


def any_process(flag: bool) -> bool:
    """Whether the flag is set in at least one process."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def from_main(number: int) -> int:
    """The main process's number, which must fit 32 bits; the other processes' numbers are ignored."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.array(number, np.int32)))
