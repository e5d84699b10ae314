"""What holds of every launch file: clean shell, an answer to wrong use, installing from locks; and local.sh."""

import os
import re
import signal
import subprocess
import time

import pytest

from tests.launch.conftest import PYTHON3
from tests.launch.stubs import LAUNCH, SCRIPTS

CALLED = [
    LAUNCH / name for name in ("install.sh", "local.sh", "tpu_vm.sh", "queued_resource.sh", "xpk.sh", "slurm.sbatch")
]
SHELL = [*SCRIPTS, LAUNCH.parent / ".ci" / "run", LAUNCH.parent / "requirements" / "lock.sh"]


def test_shellcheck_finds_nothing(program):
    checked = subprocess.run(
        [program("shellcheck"), "--shell=bash", *map(str, SHELL)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout


def test_nothing_is_fetched_past_the_locks():
    for path in LAUNCH.iterdir():
        assert not re.search(r"\b(curl|wget)\b", path.read_text()), path


@pytest.mark.parametrize("path", CALLED, ids=lambda path: path.name)
def test_without_words_a_file_prints_its_usage_and_leaves_with_2(path, stubs):
    said = stubs.run(["bash", str(path)])
    assert said.returncode == 2 and said.stdout == ""
    assert f"launch/{path.name}" in said.stderr and "motab_jax" not in said.stderr


@pytest.mark.parametrize("old", ["", "yes"], ids=["python3.11", "older"])
def test_install_takes_a_lock_by_its_hashes_once(old, host, stubs):
    for _ in range(2):
        said = stubs.run(["bash", "launch/install.sh", "cuda"], host, OLD=old)
        assert said.returncode == 0, said.stderr
    installs = [call for call in stubs.calls() if "pip" in call]
    locks = ["requirements/cuda.txt"] if not old else ["requirements/uv.txt", "requirements/cuda.txt"]
    assert [call[-1] for call in installs if "--require-hashes" in call] == locks
    [package] = [call for call in installs if "--require-hashes" not in call]
    assert "--no-deps" in package and package[-1] == "."


def test_a_failed_installation_is_tried_again(host, stubs):
    stubs.add("python3", PYTHON3 + "sys.exit(1 if 'pip' in words else 0)\n")
    for _ in range(2):
        assert (
            stubs.run(["bash", "-c", "source launch/_venv.sh; if ensure base .; then exit 7; fi"], host).returncode == 0
        )
    assert len([call for call in stubs.calls() if "pip" in call]) == 2


def test_the_image_is_installed_from_a_lock_and_is_not_root(stubs):
    lines = [line.partition(" ") for line in (LAUNCH / "Dockerfile").read_text().splitlines()]
    [base], users = ([rest for word, _, rest in lines if word == name] for name in ("FROM", "USER"))
    assert re.fullmatch(r"python:3\.\d+\.\d+-[\w-]+", base), "a release, not whatever is newest"
    assert users[-1] not in ("root", "0")
    for name in ("pip", "useradd", "install"):
        stubs.add(name)
    for word, _, command in lines:
        if word == "RUN":
            assert stubs.run(["sh", "-c", command], LOCKS="tpu gcs").returncode == 0
    *locked, package = (call for call in stubs.calls() if call[0] == "pip")
    assert [call[-1] for call in locked] == ["requirements/tpu.txt", "requirements/gcs.txt"]
    assert all("--require-hashes" in call for call in locked)
    assert "--no-deps" in package and package[-1] == "."


@pytest.mark.parametrize("words", [["2"], ["0", "1"], ["2", "0"], ["two", "1"]])
def test_local_wants_two_numbers(words, stubs):
    said = stubs.run(["bash", str(LAUNCH / "local.sh"), *words])
    assert said.returncode == 2 and "PROCESSES DEVICES" in said.stderr


@pytest.mark.parametrize(
    ("file", "missing"),
    [("tpu_vm.sh", "RUNS"), ("queued_resource.sh", "RUNS"), ("xpk.sh", "IMAGE"), ("xpk.sh", "RUNS")],
)
def test_a_missing_variable_is_named(file, missing, stubs):
    given = {"NAME": "a", "ZONE": "b", "CLUSTER": "c", "PROJECT": "d", "RUNS": "gs://e/f", "IMAGE": "g", missing: ""}
    said = stubs.run(["bash", str(LAUNCH / file), "mine.yaml"], **given)
    assert said.returncode == 2 and said.stderr.startswith(f"error: {missing} is not set\n")


# Whatever a file might call.
PROGRAMS = ("gcloud", "xpk", "srun", "sbatch", "scontrol", "git", "tar", "sudo", "systemctl", "mountpoint", "mktemp")
DRY = {
    **{"NAME": "pod", "ZONE": "z", "CLUSTER": "c", "PROJECT": "p", "IMAGE": "i", "RUNS": "gs://b/runs"},
    **{"DRY": "1", "SPOT": "1", "JAX_COORDINATOR_ADDRESS": "", "SLURM_JOB_ID": ""},
}


@pytest.mark.parametrize("path", [path for path in SCRIPTS if path.name[0] != "_"], ids=lambda path: path.name)
def test_dry_prints_commands_and_does_nothing(path, stubs, host):
    for name in PROGRAMS:
        stubs.add(name)
    before = sorted(host.rglob("*"))
    first = {"local.sh": ["2", "4"], "install.sh": ["cuda"]}.get(path.name, [])
    words = [] if path.name == "install.sh" else ["mine.yaml", "data.fields={prompt: it's}"]
    said = stubs.run(["bash", f"launch/{path.name}", *first, *words], host, **DRY)
    assert said.returncode == 0 and said.stderr == "", said.stderr
    assert [call for call in stubs.calls() if call[1:2] != ["-c"]] == [], "a question of python3 changes nothing"
    assert sorted(host.rglob("*")) == before
    checked = subprocess.run(["bash", "-n"], input=said.stdout, capture_output=True, text=True)
    assert said.stdout.strip() and checked.returncode == 0, checked.stderr


@pytest.mark.parametrize(
    ("file", "program"),
    [("xpk.sh", "xpk"), ("slurm.sbatch", "srun"), ("install.sh", "python3"), ("tpu_vm.sh", "gcloud")],
)
def test_what_dry_prints_is_what_would_be_done(file, program, stubs, host):
    """The printed commands, run, make the same calls as the file."""
    python = host / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    stubs.add("python", "").rename(python)
    stubs.add(program, "sys.exit('describe' in words)")
    for name in {"git", "sbatch"} - {program}:
        stubs.add(name)
    words = ["cuda"] if file == "install.sh" else ["mine.yaml", "data.fields={prompt: it's}"]
    made = []
    for command in (
        ["bash", f"launch/{file}", *words],
        ["bash", "-c", stubs.run(["bash", f"launch/{file}", *words], host, **DRY).stdout],
    ):
        stubs.log.unlink(missing_ok=True)
        (host / ".venv" / "installed-cuda").unlink(missing_ok=True)
        said = stubs.run(command, host, **{**DRY, "DRY": "", "SLURM_JOB_ID": "7"})
        assert said.returncode == 0, said.stderr
        calls = [call for call in stubs.calls() if call[0] not in ("git", "sbatch") and "describe" not in call]
        made.append([[word for word in call if not word.endswith("/motab.tgz")] for call in calls])
    assert made[0] and made[0] == made[1]


LOCAL = """
import signal, time
if words[0] == "-c":
    sys.exit(print(4321))
if "pip" in words:
    sys.exit()
index = int(os.environ["JAX_PROCESS_ID"])
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.1 * index), os._exit(75)))
seen = {key: os.environ[key] for key in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PLATFORMS")}
print(index, words, seen, flush=True)
end = os.environ["ENDS"].split(",")[index]
sys.exit(int(end) if end.isdecimal() else time.sleep(60))
"""


@pytest.fixture
def checkout(stubs, host):
    """A host whose environment has a Python that does as it is told."""
    (host / ".venv" / "bin").mkdir(parents=True)
    stubs.add("python", LOCAL).rename(host / ".venv" / "bin" / "python")
    return host


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
