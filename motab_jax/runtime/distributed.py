"""The start and the end of a run on several hosts: one process a host, the same command on each.

On TPU pods, under Slurm and under Open MPI the processes find each other; elsewhere three variables say it. On one
host nothing is started. A process that is gone takes the others with it: they see it within HEARTBEAT seconds, or at
once where they wait for its numbers. Left out: launching the processes, which is the platform's (see `launch/`).
"""

import importlib.util
import itertools
import os
import re
import socket
import sys
import threading
from typing import Any

import jax

from motab_jax.config import PeerMissing, UserError

_COORDINATOR, _COUNT, _INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
HEARTBEAT = 40  # seconds of silence after which a process counts as gone
INIT_MARGIN_SECONDS = 60  # added to jax's own time limit, so that this module's comes first
PATIENCE = 300  # seconds that processes wait for each other to begin, and where each has work of its own to finish
_numbers = itertools.count()  # a barrier's name serves once
# How jax and its transports say that somebody else is gone.
_LOST = ("gloo", "connection closed", "connection reset", "socket closed", "heartbeat", "unavailable:", "task died")


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    patience: int = PATIENCE,
) -> None:
    """Join the other processes, if there are any. Call it before anything touches a device; again is harmless.

    Arguments come first, then the variables JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES and
    JAX_PROCESS_ID, then what the cluster says. Raises UserError if only some of the three are given or one is wrong,
    and PeerMissing if after `patience` seconds some processes have not come: it names them.
    """
    if jax.distributed.is_initialized():
        return
    coordinator = coordinator or os.environ.get(_COORDINATOR)
    num_processes = _number(_COUNT) if num_processes is None else num_processes
    process_id = _number(_INDEX) if process_id is None else process_id
    given = (coordinator, num_processes, process_id)
    if coordinator is not None and num_processes is not None and process_id is not None:
        _check(coordinator, num_processes, process_id)
        if num_processes > 1:
            _join(coordinator, num_processes, process_id, patience)
    elif in_cluster():
        _join(coordinator, num_processes, process_id, patience)
    elif any(value is not None for value in given):
        raise UserError(f"a run on several hosts needs all of {_COORDINATOR}, {_COUNT} and {_INDEX}; some are missing")


def _join(coordinator: str | None, num_processes: int | None, process_id: int | None, patience: int) -> None:
    # At its own time limit jax ends the process with a stack trace, so ours comes first.
    waiting = threading.Timer(patience, _give_up, (coordinator, num_processes, process_id, patience))
    waiting.daemon = True
    waiting.start()
    try:
        jax.distributed.initialize(
            coordinator, num_processes, process_id, initialization_timeout=patience + INIT_MARGIN_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT, shutdown_timeout_seconds=patience,
        )  # fmt: skip
    except jax.errors.JaxRuntimeError as error:
        raise PeerMissing(f"the processes did not meet: {str(error).splitlines()[0]}") from None
    finally:
        waiting.cancel()
    sys.excepthook = _fall


def _give_up(coordinator: str | None, num_processes: int | None, process_id: int | None, seconds: int) -> None:
    """Leave, and say who is not there, as far as one can know before they have met."""
    who = "some of the processes" if num_processes is None else f"some of the {num_processes} processes"
    if coordinator is not None and process_id != 0 and not _answers(coordinator):
        who = f"process 0, which should answer at {coordinator},"
    elif num_processes == 2 and process_id is not None:
        who = f"process {1 - process_id}"
    print(f"error: {who} did not come to the start within {seconds} s; see what it printed last", file=sys.stderr)
    leave(PeerMissing.status, at_once=True)


def _answers(address: str) -> bool:
    """Whether somebody listens at host:port."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=5):
            return True
    except OSError:
        return False


def _fall(*error: Any) -> None:
    """Leave at once on an error that nobody caught: at its orderly end a process waits for the others."""
    sys.__excepthook__(*error)
    leave(1)


def barrier(name: str, seconds: int = PATIENCE) -> None:
    """Wait until every process is at the barrier `name`. PeerMissing, after so many seconds, names those that are not.

    All processes must come to the same barriers in the same order.
    """
    if jax.process_count() == 1:
        return
    from orbax.checkpoint.multihost import get_barrier_sync_fn  # here: `--help` need not load orbax

    try:
        get_barrier_sync_fn()(key=f"{name} {next(_numbers)}", timeout_ms=1000 * seconds)
    except jax.errors.JaxRuntimeError as error:
        raise PeerMissing(missing(f"'{name}'", seconds, error)) from None


def missing(place: str, seconds: int, error: Exception) -> str:
    """In a sentence, who did not come to a place in time, as far as jax's error tells."""
    late = sorted({int(number) for number in re.findall(r"task:(\d+)", str(error).partition("timed out task")[2])})
    who = f"process {', '.join(map(str, late))}" if late else "at least one process"
    return f"{who} did not come to {place} within {seconds} s; see what it printed last, then start all of them again"


def explain(error: Exception) -> str:
    """What to say where a jax error means that another process is gone; raises it where it means something else."""
    text = str(error)
    if not jax.distributed.is_initialized() or not any(word in text.lower() for word in _LOST):
        raise error
    first = text.strip().splitlines()[0][:200]
    return (
        f"another process of this run is gone ({first}); see what it printed last, then start all of them again: "
        "a run goes on from its last checkpoint"
    )


def leave(status: int, *, at_once: bool = False) -> None:
    """Exit. Where others would wait for this process, because it fails and they do not, it does not wait for them.

    at_once: from a thread other than the first, too, which then ends without another word.
    """
    if at_once or (jax.distributed.is_initialized() and status not in (0, 75)):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def is_main() -> bool:
    """Whether this process writes logs and exports: one of them does. Touches the devices."""
    return jax.process_index() == 0


def in_cluster() -> bool:
    """Whether the surroundings tell of several processes, in a way that jax reads by itself."""
    env = os.environ
    slurm = "SLURM_STEP_NODELIST" in env and "SLURM_PROCID" in env and env.get("SLURM_NTASKS", "1") != "1"
    open_mpi = "OMPI_MCA_orte_hnp_uri" in env and env.get("OMPI_COMM_WORLD_SIZE", "1") != "1"
    return slurm or open_mpi or _on_tpu_pod()


def _on_tpu_pod() -> bool:
    """Whether this is a TPU host. It may be one of a pod; jax asks the platform's metadata how many there are."""
    env = os.environ
    if "," in env.get("TPU_WORKER_HOSTNAMES", "") or "MEGASCALE_COORDINATOR_ADDRESS" in env:
        return True
    # `import jax` sets TPU_SKIP_MDS_QUERY where the machine has no TPU chip.
    wanted = env.get("JAX_PLATFORMS", "tpu").split(",")[0] == "tpu" and "TPU_SKIP_MDS_QUERY" not in env
    has_libtpu = "TPU_LIBRARY_PATH" in env or importlib.util.find_spec("libtpu") is not None
    return wanted and "TPU_WORKER_HOSTNAMES" not in env and has_libtpu


def _number(name: str) -> int | None:
    text = os.environ.get(name)
    if text is None:
        return None
    if not text.isdecimal():
        raise UserError(f"{name}={text!r} is not a whole number")
    return int(text)


def _check(coordinator: str, num_processes: int, process_id: int) -> None:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"{_COORDINATOR}={coordinator!r} is not host:port, such as 10.0.0.2:8476")
    if not 0 <= process_id < num_processes:
        raise UserError(f"{_INDEX}={process_id} is not in 0..{num_processes - 1} ({_COUNT}={num_processes})")
