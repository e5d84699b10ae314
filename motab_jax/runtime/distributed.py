"""Start and end of a run of several processes: one for each host, the same command on each.

On TPU pods, under Slurm and under Open MPI the processes find each other; elsewhere three environment variables are
needed. With one process nothing is started. When a process dies, the others exit too: within HEARTBEAT seconds, or at
once where they wait for data from it. Left out: launching the processes, which is the platform's (see `launch/`).
"""

import importlib.util
import itertools
import os
import re
import socket
import sys
import threading
import zlib
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from motab_jax.config import PeerMissing, UserError

_COORDINATOR, _COUNT, _INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
_PORT, _SLICES = "JAX_COORDINATOR_PORT", "MEGASCALE_NUM_SLICES"
# jax's own choice, 8482, is not among the ports that Google's network opens between the hosts of a TPU by itself.
TPU_PORT = "8476"
HEARTBEAT = 40  # seconds without a sign of life after which a process counts as dead
INIT_MARGIN_SECONDS = 60  # added to jax's own time limit, so that this module's comes first
PATIENCE = 300  # seconds that processes wait for each other at the start and at barriers
LEAVING = 20  # seconds that a process that fails waits for the others to fail as well
_numbers = itertools.count()  # make each barrier's name unique
# Words of jax and its transports in errors that mean that another process died.
_LOST = ("gloo", "connection closed", "connection reset", "socket closed", "heartbeat", "unavailable:", "task died")


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    patience: int = PATIENCE,
    heartbeat: int = HEARTBEAT,
) -> None:
    """Join the other processes, if there are any. Call it before any device is used; a second call does nothing.

    Arguments take precedence over the variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, and
    these over what jax detects of the cluster.

    Args:
      coordinator: host:port of process 0.
      num_processes: how many processes the run has.
      process_id: the number of this one, from 0.
      patience: seconds to wait for the others.
      heartbeat: seconds without a sign of life after which a process counts as dead.

    Raises:
      UserError: only some of the three are given, or one is invalid.
      PeerMissing: some processes did not join in time.
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
            _join(coordinator, num_processes, process_id, patience, heartbeat)
    elif in_cluster():
        if _on_tpu_pod():
            os.environ.setdefault(_PORT, TPU_PORT)
        _join(coordinator, num_processes, process_id, patience, heartbeat)
    elif any(value is not None for value in given):
        raise UserError(f"a run on several hosts needs all of {_COORDINATOR}, {_COUNT} and {_INDEX}; some are missing")


def _join(
    coordinator: str | None, num_processes: int | None, process_id: int | None, patience: int, heartbeat: int
) -> None:
    # At its own time limit jax ends the process with a stack trace, so ours comes first.
    waiting = threading.Timer(patience, _give_up, (coordinator, num_processes, process_id, patience))
    waiting.daemon = True
    waiting.start()
    try:
        jax.distributed.initialize(
            coordinator, num_processes, process_id, initialization_timeout=patience + INIT_MARGIN_SECONDS,
            heartbeat_timeout_seconds=heartbeat, shutdown_timeout_seconds=patience,
        )  # fmt: skip
    except jax.errors.JaxRuntimeError as error:
        raise PeerMissing(f"the processes did not meet: {str(error).splitlines()[0]}") from None
    finally:
        waiting.cancel()
    sys.excepthook = _fall


def _give_up(coordinator: str | None, num_processes: int | None, process_id: int | None, seconds: int) -> None:
    """Exit, naming the processes that did not join, as far as that is known before they have met."""
    who = "some of the processes" if num_processes is None else f"some of the {num_processes} processes"
    if coordinator is not None and process_id != 0 and not _answers(coordinator):
        who = f"process 0, which should answer at {coordinator},"
    elif num_processes == 2 and process_id is not None:
        who = f"process {1 - process_id}"
    print(f"error: {who} did not join within {seconds} s; see what it printed last{_slices()}", file=sys.stderr)
    leave(PeerMissing.status, at_once=True)


def _slices() -> str:
    """What the platform says of slices: after a preemption that may be of slices that are gone."""
    count = os.environ.get(_SLICES, "1")
    if count == "1":
        return ""
    return f"; {_SLICES}={count} says that the run has {count} slices: where it has fewer, correct the variable"


def _answers(address: str) -> bool:
    """Whether a server listens at host:port."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=5):
            return True
    except OSError:
        return False


def _fall(*error: Any) -> None:
    """Exit at once on an uncaught error: an orderly exit would wait for the other processes."""
    sys.__excepthook__(*error)
    leave(1, at_once=True)


def barrier(name: str, seconds: int = PATIENCE) -> None:
    """Wait until every process has reached this barrier. All processes must call the same barriers in the same order.

    Args:
      name: what the processes wait for, as the error says it.
      seconds: how long to wait.

    Raises:
      PeerMissing: some processes did not reach it in time; the message has their numbers.
    """
    if jax.process_count() == 1:
        return
    from orbax.checkpoint.multihost import get_barrier_sync_fn  # here: `--help` need not load orbax

    try:
        get_barrier_sync_fn()(key=f"{name} {next(_numbers)}", timeout_ms=1000 * seconds)
    except jax.errors.JaxRuntimeError as error:
        raise PeerMissing(missing(f"'{name}'", seconds, error)) from None


def missing(barrier_name: str, seconds: int, error: Exception) -> str:
    """A sentence that names the processes that did not reach a barrier, as far as jax's error tells."""
    late = sorted({int(number) for number in re.findall(r"task:(\d+)", str(error).partition("timed out task")[2])})
    who = f"process {', '.join(map(str, late))}" if late else "at least one process"
    return (
        f"{who} did not reach {barrier_name} within {seconds} s; see what it printed last, then start all of them again"
    )


def explain(error: Exception) -> str:
    """The message for a jax error that means that another process died; raises the error if it means anything else."""
    text = str(error)
    if not jax.distributed.is_initialized() or not any(word in text.lower() for word in _LOST):
        raise error
    first = text.strip().splitlines()[0][:200]
    return (
        f"another process of this run died ({first}); see what it printed last, then start all of them again: "
        "a run goes on from its last checkpoint"
    )


def leave(status: int, message: str | None = None, *, at_once: bool = False) -> None:
    """Print the message and exit with the status; processes that fail together leave together.

    A process that fails waits LEAVING seconds for the others. If all have failed by then, all leave with one status,
    the user's mistake where one of them has that, and one process alone prints a message that all have. If the others
    have not failed, this one leaves, and they find that it is gone.

    Args:
      status: the exit status.
      message: what to print on standard error, on one line.
      at_once: exit without waiting and without any clean-up; also from a thread other than the main one.
    """
    fails = jax.distributed.is_initialized() and status not in (0, 75)
    if fails and not at_once and jax.process_count() > 1:
        status, message = _agree(status, message)
    if message is not None:
        print(message, file=sys.stderr)
    if at_once or fails:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _agree(status: int, message: str | None) -> tuple[int, str | None]:
    """The status with which all processes leave, and this one's message; None where the main process has the same."""
    try:
        barrier("leaving", LEAVING)
    except PeerMissing:
        return status, message
    own = np.array([status, zlib.crc32((message or "").encode())], np.uint32)
    everyones = multihost_utils.process_allgather(own)
    statuses = everyones[:, 0].tolist()
    same = jax.process_index() > 0 and everyones[0, 1] == own[1]
    jax.distributed.shutdown()  # waits until all are here: a process that leaves first takes the others with it
    return UserError.status if UserError.status in statuses else max(statuses), None if same else message


def is_main() -> bool:
    """Whether this is the process that writes logs and exports. Initialises the devices."""
    return jax.process_index() == 0


def in_cluster() -> bool:
    """Whether the environment describes several processes in a way that jax detects by itself."""
    env = os.environ
    slurm = "SLURM_STEP_NODELIST" in env and "SLURM_PROCID" in env and env.get("SLURM_NTASKS", "1") != "1"
    open_mpi = "OMPI_MCA_orte_hnp_uri" in env and env.get("OMPI_COMM_WORLD_SIZE", "1") != "1"
    return slurm or open_mpi or _on_tpu_pod()


def _on_tpu_pod() -> bool:
    """Whether this is a TPU host; whether it is one of a pod, jax finds in the platform's metadata."""
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
