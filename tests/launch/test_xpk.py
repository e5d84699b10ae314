"""xpk: what it is asked for; and, where it is installed, the JobSet that it makes of that, in a dry run."""

import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from motab_jax.runtime.cli import STOPPED
from tests.launch.stubs import LAUNCH, options

WORDS = ["configs/quickstart.yaml", "run.seed=1", "data.fields={prompt: it's}"]
RUN = ["python", "-m", "motab_jax.train", "run.dir=/runs", "run.start_seconds=1800", *WORDS]
GIVEN = {"CLUSTER": "c", "PROJECT": "p", "ZONE": "us-west4-a", "IMAGE": "registry/motab", "STORAGE": "runs"}


def test_xpk_is_asked_for_a_workload_that_restarts(stubs):
    stubs.add("xpk")
    said = stubs.run(["bash", "launch/xpk.sh", *WORDS], **GIVEN, GRACE="900", SLICES="2", MORE="--dry-run --spot")
    assert said.returncode == 0, said.stderr
    [call] = stubs.calls()
    asked = options(call)
    assert call[:3] == ["xpk", "workload", "create"]
    assert shlex.split(asked.pop("--command")) == ["exec", *RUN]
    assert set(asked.pop("--restart-on-exit-codes").split(",")) == {"1", str(STOPPED)}, "and not 2, a mistake"
    assert int(asked.pop("--max-restarts")) >= 20, "spot nodes are taken away more than once"
    assert asked == {
        **{"--cluster": "c", "--project": "p", "--zone": "us-west4-a", "--workload": "motab"},
        **{"--tpu-type": "v5litepod-16", "--num-slices": "2", "--docker-image": "registry/motab", "--storage": "runs"},
        **{"--env": "HF_HOME=/runs/huggingface", "--termination-grace-period-seconds": "900"},
        **{"--dry-run": "", "--spot": ""},
    }


def test_a_bucket_needs_no_storage_of_the_cluster(stubs):
    stubs.add("xpk")
    said = stubs.run(["bash", "launch/xpk.sh", *WORDS], **{**GIVEN, "STORAGE": "", "RUNS": "gs://b/runs"})
    assert said.returncode == 0, said.stderr
    [call] = stubs.calls()
    assert "run.dir=gs://b/runs" in shlex.split(options(call)["--command"])
    assert not {"--storage", "--env"} & options(call).keys()


@pytest.mark.parametrize("runs", ["s3://b/runs", "/runs"])
def test_runs_that_the_pods_cannot_keep_are_refused(runs, stubs):
    stubs.add("xpk")
    said = stubs.run(["bash", "launch/xpk.sh", *WORDS], **GIVEN, RUNS=runs)
    assert said.returncode == 2 and runs in said.stderr and stubs.calls() == []


@pytest.fixture
def jobset(program, stubs, tmp_path):
    """What xpk writes of launch/xpk.sh with its defaults."""
    manifest, places = tmp_path / "manifest.yaml", Path(program("xpk")).parent
    said = subprocess.run(
        ["bash", str(LAUNCH / "xpk.sh"), *WORDS], cwd=tmp_path, capture_output=True, text=True,
        env={
            **GIVEN, "HOME": str(tmp_path), "PATH": f"{places}{os.pathsep}{os.environ['PATH']}",
            "TELEMETRY_ENABLED": "false", "MORE": f"--dry-run --output-manifest-file={manifest}",
        },
    )  # fmt: skip
    assert said.returncode == 0, said.stdout + said.stderr
    changing = [line.split()[:3] for line in said.stdout.splitlines() if line.startswith(("kubectl apply", "docker"))]
    assert changing == [["kubectl", "apply", "-f"]], "one thing is done to the cluster, and no image is built"
    return yaml.safe_load(manifest.read_text())


def test_xpk_makes_a_jobset_that_restarts_and_waits_for_a_save(jobset):
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    [rule], [container] = job["podFailurePolicy"]["rules"], pod["containers"]
    restarts = rule["onExitCodes"].pop("values")
    assert {1, STOPPED, 137, 143} <= set(restarts) and 2 not in restarts
    found = {
        "failure": jobset["spec"]["failurePolicy"],
        "jobs": [jobset["spec"]["replicatedJobs"][0]["replicas"], job["parallelism"], job["completions"]],
        "rule": [rule["action"], rule["onExitCodes"]],
        "pod": [pod["restartPolicy"], job["backoffLimit"], pod["terminationGracePeriodSeconds"]],
        "slice": {name: value for name, value in pod["nodeSelector"].items() if "tpu" in name},
        "container": [container["image"], container["resources"]["limits"]],
        "home": [each["value"] for each in container["env"] if each["name"] == "HF_HOME"],
    }
    assert found == {
        "failure": {
            "rules": [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
            "maxRestarts": 100,
        },
        "jobs": [1, 4, 4],
        "rule": ["FailJob", {"containerName": container["name"], "operator": "NotIn"}],
        "pod": ["Never", 0, 600],
        "slice": {
            "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
            "cloud.google.com/gke-tpu-topology": "4x4",
        },
        "container": ["registry/motab", {"google.com/tpu": 4}],
        "home": ["/runs/huggingface"],
    }


def test_the_shell_that_xpk_writes_passes_the_signal_to_the_run(jobset, stubs, tmp_path):
    """The container's own command, run here: the run hears SIGTERM, and its status is the container's."""
    ready = tmp_path / "ready"
    stubs.add("sleep", "import time\ntime.sleep(0.1)\n")  # that shell looks every five seconds
    stubs.add(
        "python",
        "import signal, time\nsignal.signal(signal.SIGTERM, lambda *_: os._exit(75))\n"
        f"open({str(ready)!r}, 'w').close()\ntime.sleep(60)\n",
    )
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    command = job["template"]["spec"]["containers"][0]["command"]
    env = {**os.environ, "PATH": f"{stubs.bin}{os.pathsep}{os.environ['PATH']}"}
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL) as container:
        deadline = time.monotonic() + 20
        while not ready.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        container.send_signal(signal.SIGTERM)
        assert container.wait(30) == STOPPED
    assert [call for call in stubs.calls() if call[0] != "sleep"] == [RUN]
