"""The SkyPilot file: SkyPilot loads it, where it is installed; its two scripts are run as SkyPilot would."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from motab_jax.runtime.cli import STOPPED
from tests.launch.stubs import LAUNCH

TASK = yaml.safe_load((LAUNCH / "sky.yaml").read_text())
NODES = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NODE_IPS": "10.0.0.4\n10.0.0.5"}
QUIET = {"PATH": "/usr/bin:/bin", "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
NAMES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")

LOAD = """
import json, sys
import sky
task = sky.Task.from_yaml(sys.argv[1])
[resources] = task.resources
print(json.dumps({
    "nodes": task.num_nodes, "cloud": str(resources.cloud), "accelerators": resources.accelerators,
    "arguments": resources.accelerator_args, "spot": resources.use_spot,
    "recovery": resources.job_recovery["recover_on_exit_codes"],
    "kept": {path: [storage.name, storage.mode.value] for path, storage in task.storage_mounts.items()},
}))
"""


def test_skypilot_loads_it(program, tmp_path):
    python = Path(program("sky")).read_text().partition("\n")[0].removeprefix("#!")
    loaded = subprocess.run(
        [python, "-c", LOAD, str(LAUNCH / "sky.yaml")], cwd=LAUNCH.parent, env={**QUIET, "HOME": str(tmp_path)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert loaded.returncode == 0, loaded.stderr
    assert json.loads(loaded.stdout.splitlines()[-1]) == {
        "nodes": 1,
        "cloud": "GCP",
        "accelerators": {"tpu-v5litepod-16": 1},
        "arguments": {"runtime_version": "v2-alpha-tpuv5-lite"},
        "spot": True,
        "recovery": [STOPPED],
        "kept": {},
    }


def test_a_stopped_run_is_recovered_and_its_folder_outlives_the_machine():
    assert TASK["resources"]["job_recovery"]["recover_on_exit_codes"] == [STOPPED] and TASK["resources"]["use_spot"]
    assert "file_mounts" not in TASK, "a log on a mounted bucket is uploaded when it is closed"


def test_without_a_bucket_nothing_starts(stubs):
    said = stubs.run(["bash", "-c", TASK["run"]], **NODES, SKYPILOT_NUM_GPUS_PER_NODE="0", RUNS="", ARGS="mine.yaml")
    assert said.returncode != 0 and "RUNS: a bucket" in said.stderr and stubs.calls() == []


def test_its_script_is_clean_shell(program, tmp_path):
    (tmp_path / "run").write_text(TASK["run"])
    words = [program("shellcheck"), "--shell=bash", str(tmp_path / "run")]
    checked = subprocess.run(words, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("locks", ["tpu gcs", "cuda"])
def test_setup_installs_locks(locks, stubs, host):
    (host / "requirements" / "gcs.txt").touch()
    said = stubs.run(["bash", "-c", TASK["setup"]], host, LOCKS=locks)
    assert said.returncode == 0, said.stderr
    installed = [call[-1] for call in stubs.calls() if "--require-hashes" in call]
    assert installed == [f"requirements/{lock}.txt" for lock in locks.split()]


def test_setup_fails_where_a_lock_does(stubs, host):
    assert stubs.run(["bash", "-c", TASK["setup"]], host, LOCKS="nothing cuda").returncode != 0
    assert not [call for call in stubs.calls() if "--require-hashes" in call]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"SKYPILOT_NUM_GPUS_PER_NODE": "8"}, ["10.0.0.4:8476", "2", "1"]),
        ({"SKYPILOT_NUM_GPUS_PER_NODE": "8", "SKYPILOT_NUM_NODES": "1"}, [None, None, None]),
        ({"SKYPILOT_NUM_GPUS_PER_NODE": "0"}, [None, None, None]),
    ],
    ids=["gpu-nodes", "one-gpu-node", "tpu-hosts"],
)
def test_gpu_nodes_are_told_who_they_are(given, told, stubs, tmp_path, monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    python = stubs.add("python", f"print(json.dumps([os.environ.get(name) for name in {NAMES}]))")
    shutil.move(python, tmp_path / ".venv" / "bin" / "python")
    said = stubs.run(
        ["bash", "-c", TASK["run"]], tmp_path, **{**NODES, **given}, RUNS="gs://b/runs", ARGS="mine.yaml run.seed=1"
    )
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout) == told
    words = ["run.dir=gs://b/runs", "run.start_seconds=1800", "mine.yaml", "run.seed=1"]
    assert stubs.calls() == [["python", "-m", "motab_jax.train", *words]]
