"""The same run on every factorisation of 8 devices into data x fsdp x tensor, against one device."""

import pytest

from tests.verbs.helpers import read_lines, spawn, words, write_pair

pytestmark = pytest.mark.long

STEPS = 5
MESHES = [(d, f, 8 // (d * f)) for d in (1, 2, 4, 8) for f in (1, 2, 4, 8) if d * f <= 8]


@pytest.fixture(scope="module")
def eight_heads(tmp_path_factory):
    """A pair whose 8 heads can be cut 8 ways; its 2 key-value heads are then copied."""
    return write_pair(tmp_path_factory.mktemp("pair"), heads=8)


def run(pair, runs, devices, *mesh):
    """Metrics and trajectories of a greedy run."""
    greedy = ["rollout.temperature=0.0", f"run.steps={STEPS}", "run.eval_every=0", "run.sample_every=1", "run.seed=3"]
    process = spawn("train", words(pair, runs, *greedy, *mesh), devices)
    assert process.returncode == 0, process.stderr
    return (read_lines(runs / "tiny" / f"{name}.jsonl") for name in ("metrics", "trajectories"))


@pytest.fixture(scope="module")
def alone(eight_heads, tmp_path_factory):
    metrics, trajectories = run(eight_heads, tmp_path_factory.mktemp("alone"), 1)
    return list(metrics), list(trajectories)


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_eight_devices_are_as_good_as_one(mesh, eight_heads, alone, tmp_path):
    changes = [f"mesh.{name}={size}" for name, size in zip(("data", "fsdp", "tensor"), mesh, strict=True)]
    metrics, trajectories = run(eight_heads, tmp_path, 8, *changes)
    for ours, theirs in zip(metrics, alone[0], strict=True):
        for name in ("loss", "grad_norm", "value"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-6), name
    assert [line["tokens"] for line in trajectories] == [line["tokens"] for line in alone[1]]
