"""The JobSet: its form, and what it promises of restarts, stops, spot nodes and the slice."""

import copy
import json
import math
from pathlib import Path

import pytest
import yaml

from motab_jax.config.sections import RunSection
from motab_jax.runtime.cli import STOPPED
from motab_jax.runtime.distributed import PATIENCE, TPU_PORT
from tests.launch.stubs import LAUNCH
from tests.verbs.schema import faults

SCHEMA = json.loads(Path(__file__).with_name("jobset.schema.json").read_text())
JOBSET = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())
SLICE = JOBSET["spec"]["replicatedJobs"][0]
JOB = SLICE["template"]["spec"]
POD = JOB["template"]["spec"]
TRAIN = POD["containers"][0]
MISTAKE, CRASH = 2, 1
SAVE_SECONDS = 300  # what a step and a save of the real pair must have at the least
TPU = "cloud.google.com/gke-tpu-"


def test_its_form_is_that_of_a_jobset():
    assert faults(JOBSET, SCHEMA) == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda spec: spec["failurePolicy"].update(maxRestart=3),
        lambda spec: spec["replicatedJobs"][0]["template"]["spec"].update(backoffLimit="0"),
        lambda spec: spec["replicatedJobs"][0]["template"]["spec"]["template"]["spec"].pop("restartPolicy"),
        lambda spec: spec["failurePolicy"]["rules"][0].update(action="FailJob"),
    ],
    ids=["unknown-key", "text-for-number", "missing-key", "unknown-action"],
)
def test_the_schema_sees_what_it_should(spoil):
    spoiled = copy.deepcopy(JOBSET)
    spoil(spoiled["spec"])
    assert faults(spoiled, SCHEMA) != []


def becomes(status: int) -> str:
    """What the JobSet does once a pod has ended with a status, by its rules: restart or fail."""
    [rule] = JOB["podFailurePolicy"]["rules"]
    codes = rule["onExitCodes"]
    assert rule["action"] == "FailJob" and codes["operator"] == "In" and codes["containerName"] == TRAIN["name"]
    assert rule["onPodConditions"] == []
    reason = "PodFailurePolicy" if status in codes["values"] else "BackoffLimitExceeded"
    for rule in JOBSET["spec"]["failurePolicy"]["rules"]:
        if reason in rule["onJobFailureReasons"]:
            return "fail" if rule["action"] == "FailJobSet" else "restart"
    return "restart"


def test_a_stop_a_lost_node_and_a_crash_start_again_and_a_mistake_does_not():
    assert [becomes(status) for status in (STOPPED, CRASH, 128 + 9, 128 + 15)] == 4 * ["restart"]
    assert becomes(MISTAKE) == "fail"
    assert JOBSET["spec"]["failurePolicy"]["maxRestarts"] >= 20, "spot nodes are taken away more than once"
    assert JOB["backoffLimit"] == 0 and POD["restartPolicy"] == "Never", "no pod starts again without the others"


def test_a_stopped_pod_hears_it_and_has_time_to_save():
    assert POD["terminationGracePeriodSeconds"] >= SAVE_SECONDS
    assert TRAIN["command"] == ["python", "-m", "motab_jax.train"], "no shell between the signal and the run"
    assert POD["shareProcessNamespace"] is True, "Python is not process 1, which ignores signals it has no handler for"


def test_spot_nodes_are_asked_for_and_tolerated():
    assert POD["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    taints = {toleration["key"]: toleration for toleration in POD["tolerations"]}
    assert taints["cloud.google.com/gke-spot"]["value"] == "true" and "google.com/tpu" in taints


def test_there_is_one_pod_a_host_and_all_chips_are_used():
    assert JOB["completionMode"] == "Indexed" and JOB["completions"] == JOB["parallelism"]
    chips = math.prod(int(side) for side in POD["nodeSelector"][f"{TPU}topology"].split("x"))
    assert chips == JOB["parallelism"] * TRAIN["resources"]["limits"]["google.com/tpu"]
    assert JOBSET["metadata"]["annotations"] == {
        "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
    }, "a slice's pods share one node pool"


def test_runs_are_kept_outside_the_pods_and_the_words_are_a_runs():
    assert (LAUNCH.parent / TRAIN["args"][0]).is_file(), "the image holds the checkout, the recipes with it"
    known = {f"run.{name}" for name in RunSection.model_fields}
    given = dict(word.split("=", 1) for word in TRAIN["args"][1:])
    assert given.keys() <= known and given["run.dir"].startswith("gs://")
    assert int(given["run.start_seconds"]) > PATIENCE, "pods start at different times"


def test_process_0_is_reached_at_a_port_that_the_pod_names():
    assert int(TPU_PORT) in [port["containerPort"] for port in TRAIN["ports"]]
