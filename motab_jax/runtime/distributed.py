"""The start of a run on several hosts: one process a host, the same command on each.

On TPU pods, under Slurm and under Open MPI the processes find each other; elsewhere three variables say it. On one
host nothing is started. Left out: launching the processes, which is the platform's (see `launch/`).
"""

import os
from pathlib import Path

import jax

from motab_jax.config import UserError

_COORDINATOR, _COUNT, _INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


def initialize(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Join the other processes, if there are any. Call it before anything touches a device; again is harmless.

    Arguments come first, then the variables JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES and
    JAX_PROCESS_ID, then what the cluster says. Raises UserError if only some of the three are given or one is wrong.
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
            jax.distributed.initialize(coordinator, num_processes, process_id)
    elif in_cluster():
        jax.distributed.initialize(coordinator, num_processes, process_id)
    elif any(value is not None for value in given):
        raise UserError(f"a run on several hosts needs all of {_COORDINATOR}, {_COUNT} and {_INDEX}; some are missing")


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
    """A TPU host may be one of a pod; jax asks the platform's metadata how many there are."""
    env = os.environ
    if "," in env.get("TPU_WORKER_HOSTNAMES", "") or "MEGASCALE_COORDINATOR_ADDRESS" in env:
        return True
    wanted = env.get("JAX_PLATFORMS", "tpu").split(",")[0] == "tpu" and "TPU_SKIP_MDS_QUERY" not in env
    return wanted and "TPU_WORKER_HOSTNAMES" not in env and Path("/dev/accel0").exists()


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
