"""What the processes of a run tell each other: arrays, a word, and that they are there. One process alone says nothing.

All processes must call these functions in the same order. Left out: how they found each other (distributed.py).
"""

import functools
import re
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from motab_jax.config import UserError
from motab_jax.runtime.mesh import replicated

PATIENCE = 300.0  # seconds that processes wait for each other where each has its own work to finish first


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


def barrier(name: str, seconds: float = PATIENCE) -> None:
    """Wait until every process is at the barrier `name`. UserError, after `seconds`, names those that are not."""
    if jax.process_count() == 1:
        return
    from jax._src import distributed  # jax's public names have no barrier with a time limit

    try:
        distributed.global_state.client.wait_at_barrier(name, timeout_in_ms=round(1000 * seconds))
    except jax.errors.JaxRuntimeError as error:
        raise UserError(_missing(name, seconds, str(error))) from None


def _missing(name: str, seconds: float, text: str) -> str:
    late = sorted({int(number) for number in re.findall(r"task:(\d+)", text.partition("timed out task")[2])})
    who = f"process {', '.join(map(str, late))} of {jax.process_count()} did" if late else "some processes did"
    return f"{who} not come to '{name}' within {seconds:.0f} s; look at what they printed last, then start all again"
