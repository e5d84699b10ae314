"""The Slurm file from end to end: sbatch runs it, srun starts two processes as on two nodes, which meet and train."""

import json
import re
import socket
import sys

import pytest

from tests.launch.stubs import LAUNCH, options
from tests.verbs.helpers import environment, words, write_pair

FILE = LAUNCH / "slurm.sbatch"
SAVE_SECONDS = 300  # what a step and a save of the real pair must have at the least

SBATCH = """
sys.exit(subprocess.run(["bash", *words], env={**os.environ, "SLURM_JOB_ID": os.environ["JOB"]}).returncode)
"""
# The variables from which jax reads who a process is; the status is the highest, as srun's.
SRUN = """
command = words[[word.startswith("-") for word in words].index(False):]
common = {**os.environ, "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_NODES": "2"}
tasks = [subprocess.Popen(command, env={**common, "SLURM_PROCID": f"{n}", "SLURM_LOCALID": "0"}) for n in range(2)]
sys.exit(max(task.wait() for task in tasks))
"""
PYTHON = """
with open({devices!r}, "a") as file:
    print(os.environ.get("JAX_LOCAL_DEVICE_IDS"), file=file)
if "ENDS" in os.environ:
    sys.exit(int(os.environ["ENDS"].split(",")[int(os.environ["SLURM_PROCID"])]))
os.execv({python!r}, [{python!r}, *words])
"""
FIRST_PORT = 65535 - 2**12 + 1  # jax adds the job's number modulo 4096


def free_job() -> str:
    """A job's number on whose port nobody listens."""
    for number in range(100, 2**12):
        with socket.socket() as probe:
            if probe.connect_ex(("localhost", FIRST_PORT + number)):
                return str(number)
    raise AssertionError("no free port")


@pytest.fixture
def slurm(stubs, tmp_path):
    """run(words, variables) submits the file."""
    devices = str(tmp_path / "devices")
    for name, behaviour in {"srun": SRUN, "sbatch": SBATCH, "scontrol": ""}.items():
        stubs.add(name, behaviour)
    python = str(stubs.add("python", PYTHON.format(devices=devices, python=sys.executable)))

    def run(arguments, **variables):
        return stubs.run(["sbatch", str(FILE), *arguments], **{"JOB": "7", "PYTHON": python, **variables})

    return run


@pytest.mark.long
def test_two_processes_meet_and_train(slurm, tmp_path):
    problems = tmp_path / "problems.jsonl"
    problems.write_text("".join(f'{{"prompt": "{n}+1=", "completion": "{n + 1}"}}\n' for n in range(10, 20)))
    pair, runs = write_pair(tmp_path / "pair"), tmp_path / "runs"
    # By given text, because that compiles the least; tests/verbs trains on rollouts with several processes.
    given = ["method=sft", "rollout.samples_per_prompt=1", "data.source=jsonl", f"data.path={problems}"]
    arguments = words(pair, runs, *given, "run.steps=2", "run.eval_every=0", "eval.reverse_kl=false")
    said = slurm(arguments, **environment(), JOB=free_job(), SLURM_GPUS_ON_NODE="4")
    assert said.returncode == 0, said.stderr
    assert json.loads((runs / "tiny" / "summary.json").read_text())["steps"] == 2
    assert (runs / "tiny" / "export" / "model.safetensors").is_file()
    assert said.stdout.count("2 steps") == 1, "one of the two reports"
    assert (tmp_path / "devices").read_text() == 2 * "0,1,2,3\n", "a process has all of its node's GPUs"


@pytest.mark.parametrize(
    ("ends", "status", "again"), [("0,0", 0, False), ("75,75", 75, True), ("2,2", 2, False), ("1,1", 1, False)]
)
def test_a_job_that_was_stopped_after_saving_queues_again(ends, status, again, slurm, stubs, tmp_path):
    said = slurm(["mine.yaml", "run.seed=1"], ENDS=ends)
    assert said.returncode == status
    calls = {name: [call for call in stubs.calls() if call[0] == name] for name in ("srun", "python", "scontrol")}
    [srun] = calls["srun"]
    asked = {"--kill-on-bad-exit": "0", "--wait": "600"}
    assert options(srun).items() >= asked.items(), "who leaves first does not end those that still save"
    assert calls["python"] == 2 * [["python", "-m", "motab_jax.train", "mine.yaml", "run.seed=1"]]
    assert calls["scontrol"] == ([["scontrol", "requeue", "7"]] if again else [])
    assert (tmp_path / "devices").read_text() == 2 * "None\n", "nothing is said of GPUs where Slurm says nothing"


def test_a_missing_python_is_named(slurm):
    said = slurm(["mine.yaml"], PYTHON="/nowhere/python")
    assert said.returncode == 2 and "there is no /nowhere/python" in said.stderr


def test_what_is_asked_of_slurm():
    lines = FILE.read_text().splitlines()
    asked = [line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH ")]
    options = {name: value for name, _, value in (option.partition("=") for option in asked)}
    assert options["ntasks-per-node"] == "1", "a process a node"
    assert "requeue" in options and options["open-mode"] == "append", "a job that starts again keeps its log"
    [seconds] = re.findall(r"^TERM@(\d+)$", options["signal"])  # no B: the processes hear it, not the script
    assert int(seconds) >= SAVE_SECONDS
    first_command = next(n for n, line in enumerate(lines) if line and not line.startswith("#"))
    assert all(n < first_command for n, line in enumerate(lines) if line.startswith("#SBATCH ")), "else unread"
