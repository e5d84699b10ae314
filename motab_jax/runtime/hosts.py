"""What the processes of a run tell each other: arrays, and a word. One process alone says nothing.

All processes must call these functions in the same order. Left out: how they found each other (distributed.py).
"""

import functools
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from motab_jax.runtime.mesh import replicated


def fetch(tree: Any, mesh: Any) -> Any:
    """The tree on this host as NumPy, whole: what lies on several hosts is gathered from them over the mesh."""
    leaves, structure = jax.tree.flatten(tree)
    far = [n for n, x in enumerate(leaves) if isinstance(x, jax.Array) and not _is_here(x)]
    if far:
        for n, whole in zip(far, _gather(mesh)([leaves[n] for n in far]), strict=True):
            leaves[n] = whole
    return jax.device_get(jax.tree.unflatten(structure, leaves))


def _is_here(x: jax.Array) -> bool:
    return x.is_fully_addressable or x.is_fully_replicated


@functools.cache
def _gather(mesh: Any):
    return jax.jit(lambda arrays: arrays, out_shardings=replicated(mesh))


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def from_main(number: int) -> int:
    """The main process's number."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.array(number, np.int32)))
