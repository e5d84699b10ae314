"""What holds of every launch file: clean shell, a header that tells all, an answer to wrong use; and local.sh."""

import os
import shutil
import signal
import subprocess
import time

import pytest

from tests.launch.stubs import LAUNCH, SCRIPTS, header, the_command

PLATFORMS = sorted(
    LAUNCH / name
    for name in (
        *("local.sh", "tpu_vm.sh", "queued_resource.sh", "xpk.sh"),
        *("slurm.sbatch", "gke_jobset.yaml", "sky.yaml"),
    )
)
CALLED = [path for path in PLATFORMS if path.suffix in (".sh", ".sbatch")]


def name(path):
    return path.name


def test_shellcheck_finds_nothing(program):
    checked = subprocess.run(
        [program("shellcheck", "test"), "--shell=bash", *map(str, SCRIPTS), str(LAUNCH.parent / ".ci" / "run")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("path", PLATFORMS, ids=name)
def test_a_header_tells_what_is_needed_the_command_and_how_to_watch_stop_and_resume(path):
    lines = header(path)
    assert f"launch/{path.name}" in the_command(path)
    starts = [line.partition(":")[0] for line in lines if ":" in line]
    assert [word for word in starts if word in ("Needs", "Watch", "Stop", "Resume")] == [
        *("Needs", "Watch", "Stop", "Resume")
    ]
    assert all(len(line) <= 120 for line in path.read_text().splitlines())


@pytest.mark.parametrize("path", CALLED, ids=name)
def test_without_words_a_file_prints_its_header_and_leaves_with_2(path, stubs):
    said = stubs.run(["bash", str(path)])
    assert said.returncode == 2 and said.stdout == ""
    assert said.stderr.splitlines() == header(path)


@pytest.mark.parametrize("words", [["2"], ["0", "1"], ["2", "0"], ["two", "1"]])
def test_local_wants_two_numbers(words, stubs):
    said = stubs.run(["bash", str(LAUNCH / "local.sh"), *words])
    assert said.returncode == 2 and "PROCESSES DEVICES" in said.stderr


@pytest.mark.parametrize(
    ("file", "missing"), [("tpu_vm.sh", "NFS"), ("queued_resource.sh", "NFS"), ("xpk.sh", "IMAGE")], ids=str
)
def test_a_missing_variable_is_named(file, missing, stubs):
    given = {"NAME": "a", "ZONE": "b", "CLUSTER": "c", "PROJECT": "d", "STORAGE": "e", missing: ""}
    said = stubs.run(["bash", str(LAUNCH / file), "mine.yaml"], **given)
    assert said.returncode == 2 and said.stderr.startswith(f"error: {missing} is not set\n")


LOCAL = """
import signal, time
if words[0] == "-c":
    sys.exit(print(4321))
index = int(os.environ["JAX_PROCESS_ID"])
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.1 * index), os._exit(75)))
seen = {key: os.environ[key] for key in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PLATFORMS")}
print(index, words, seen, flush=True)
end = os.environ["ENDS"].split(",")[index]
sys.exit(int(end) if end.isdecimal() else time.sleep(60))
"""


@pytest.fixture
def checkout(stubs, tmp_path):
    """A folder with the launch files and a Python that does as it is told, installed as far as they can see."""
    shutil.copytree(LAUNCH, tmp_path / "launch")
    (tmp_path / "setup.py").write_text("")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    stubs.add("python", LOCAL).rename(tmp_path / ".venv" / "bin" / "python")
    (tmp_path / ".venv" / "installed-base").write_text("4294967295 0 .\n")  # cksum of nothing
    return tmp_path


@pytest.mark.parametrize(
    ("ends", "status"), [("0,0", 0), ("75,75", 75), ("75,1", 1), ("0,2", 2), ("3,75", 3), ("0,75", 75)]
)
def test_local_leaves_with_the_status_that_matters(ends, status, stubs, checkout):
    said = stubs.run(["bash", "launch/local.sh", "2", "4", "mine.yaml", "run.seed=1"], checkout, ENDS=ends, PORT="")
    assert said.returncode == status, said.stderr
    expected = {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:4321", "JAX_NUM_PROCESSES": "2", "JAX_PLATFORMS": "cpu"}
    words = ["-m", "motab_jax.train", "mine.yaml", "run.seed=1"]
    for index in range(2):
        log = (checkout / "runs" / "local-logs" / f"process-{index}.log").read_text()
        assert log == f"{index} {words} {expected}\n"


def test_local_passes_a_signal_on_and_waits_for_all(checkout):
    with subprocess.Popen(
        ["bash", "launch/local.sh", "2", "1"], cwd=checkout, env={**os.environ, "ENDS": "wait,wait"},
        stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        logs = [checkout / "runs" / "local-logs" / f"process-{index}.log" for index in range(2)]
        deadline = time.monotonic() + 120  # two processes start at once on a busy machine
        while not all(log.is_file() and log.read_text() for log in logs) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 75
