"""Multi-host start: what is read from the surroundings, and what is refused."""

import inspect
import os
import socket
import subprocess
import sys

import pytest

from motab_jax.config import PeerMissing, UserError
from motab_jax.runtime import distributed
from motab_jax.runtime.cli import STOPPED

NAMES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")

TWO = """
import jax
from motab_jax.runtime.distributed import initialize, is_main
initialize()
initialize()
print("main" if is_main() else "other", jax.process_count(), len(jax.devices()))
"""


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in (*NAMES, "SLURM_STEP_NODELIST", "TPU_WORKER_HOSTNAMES", "MEGASCALE_COORDINATOR_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


def test_one_host_starts_nothing(monkeypatch):
    calls = []
    monkeypatch.setattr(distributed.jax.distributed, "initialize", lambda *args: calls.append(args))
    distributed.initialize()
    distributed.initialize("localhost:1", 1, 0)
    assert calls == []
    assert distributed.is_main()


def test_clusters_are_seen(monkeypatch):
    assert not distributed.in_cluster()
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "host-0")
    assert not distributed.in_cluster()
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "host-0,host-1")
    assert distributed.in_cluster()


@pytest.mark.parametrize(("given", "port"), [(None, "8476"), ("9000", "9000")])
def test_the_hosts_of_a_tpu_meet_at_a_port_that_is_open(given, port, monkeypatch):
    """Google's network opens 8470, 8471, 8474 and 8476 between them by itself; jax would take 8482."""
    joined = []
    monkeypatch.setattr(distributed.jax.distributed, "initialize", lambda *_, **limits: joined.append(limits))
    monkeypatch.setattr(distributed.sys, "excepthook", sys.excepthook)  # put back afterwards
    monkeypatch.setenv("JAX_COORDINATOR_PORT", "")  # put back afterwards, whatever is set meanwhile
    monkeypatch.delenv("JAX_COORDINATOR_PORT")
    if given is not None:
        monkeypatch.setenv("JAX_COORDINATOR_PORT", given)
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "host-0,host-1")
    distributed.initialize(patience=1234, heartbeat=56)
    [limits] = joined
    assert limits["heartbeat_timeout_seconds"] == 56 and limits["initialization_timeout"] > 1234
    assert os.environ["JAX_COORDINATOR_PORT"] == port


def test_jax_reads_the_port_from_that_variable():
    """`initialize` rests on it."""
    from jax._src.clusters import cluster

    assert "JAX_COORDINATOR_PORT" in inspect.getsource(cluster)


def test_a_tpu_host_has_libtpu_and_a_chip(monkeypatch, tmp_path):
    for name in ("TPU_SKIP_MDS_QUERY", "JAX_PLATFORMS", "TPU_LIBRARY_PATH"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "libtpu.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert distributed.in_cluster()
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")  # what `import jax` says of a machine without a chip
    assert not distributed.in_cluster()
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert not distributed.in_cluster()


WITHOUT_TPU = """
import os, jax
print(os.environ.get("TPU_SKIP_MDS_QUERY"))
"""


def test_jax_says_where_there_is_no_tpu_chip():
    """`in_cluster` rests on it."""
    env = {name: value for name, value in os.environ.items() if name != "TPU_SKIP_MDS_QUERY"}
    said = subprocess.run([sys.executable, "-c", WITHOUT_TPU], env=env, capture_output=True, text=True, timeout=90)
    assert said.stdout == "1\n"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (("10.0.0.1:80", "2", None), "JAX_PROCESS_ID"),
        (("10.0.0.1", "2", "0"), "host:port"),
        (("10.0.0.1:80", "two", "0"), "JAX_NUM_PROCESSES='two'"),
        (("10.0.0.1:80", "2", "2"), r"JAX_PROCESS_ID=2 is not in 0\.\.1"),
    ],
)
def test_wrong_variables_are_named(monkeypatch, values, words):
    for name, value in zip(NAMES, values, strict=True):
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=words):
        distributed.initialize()


ALONE = """
from motab_jax.runtime.cli import run_verb
from motab_jax.runtime.distributed import initialize
run_verb(lambda words: initialize(patience=1))
"""


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return f"localhost:{probe.getsockname()[1]}"


@pytest.mark.parametrize(
    ("number", "count", "missing"),
    [
        ("0", "2", "process 1 "),
        ("1", "2", "process 0, which should answer at "),
        ("0", "3", "some of the 3 processes "),
    ],
)
def test_peers_that_do_not_come_are_named(number, count, missing):
    """It is no mistake: launchers end a run on status 2 and start it again on others."""
    env = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    env |= dict(zip(NAMES, (free_address(), count, number), strict=True))
    alone = subprocess.run([sys.executable, "-c", ALONE], env=env, capture_output=True, text=True, timeout=90)
    assert alone.returncode == PeerMissing.status not in (0, UserError.status, STOPPED)
    assert alone.stderr.startswith(f"error: {missing}") and "did not join within 1 s" in alone.stderr
    assert len(alone.stderr.splitlines()) == 1, alone.stderr
    assert "MEGASCALE" not in alone.stderr


def test_a_number_of_slices_that_may_be_stale_is_said():
    env = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "MEGASCALE_NUM_SLICES": "3"}
    env |= dict(zip(NAMES, (free_address(), "2", "0"), strict=True))
    alone = subprocess.run([sys.executable, "-c", ALONE], env=env, capture_output=True, text=True, timeout=90)
    assert alone.returncode == PeerMissing.status and "MEGASCALE_NUM_SLICES=3" in alone.stderr


def test_two_processes_join():
    address = free_address()
    common = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    runs = []
    for index in range(2):
        env = {**common, **dict(zip(NAMES, (address, "2", str(index)), strict=True))}
        runs.append(subprocess.Popen([sys.executable, "-c", TWO], env=env, stdout=subprocess.PIPE, text=True))
    try:
        said = [run.communicate(timeout=90)[0].strip() for run in runs]
    finally:
        for run in runs:
            run.kill()
    assert said == ["main 2 2", "other 2 2"]
