"""Any number of rows on any number of devices: rows are added, and nothing that is counted or learnt changes."""

import json

import pytest

from motab_jax.config import load_config
from tests.verbs.helpers import ROOT, read_lines, spawn, words, write_pair

ODD = ["rollout.batch_size=10", "optimizer.accumulate=2", "eval.batch_size=7", "eval.prompts=11", "rollout.slots=3"]
MESHES = [
    (3, ["mesh.fsdp=3"]),
    (5, ["mesh.data=5"]),
    (6, ["mesh.fsdp=3", "mesh.tensor=2"]),
    (7, ["mesh.fsdp=7"]),
    (16, ["mesh.fsdp=4"]),
]
# Recipes of the shipped pair, which need nothing that is not here.
SHIPPED = sorted(
    path.stem for path in (ROOT / "configs").glob("*.yaml") if load_config(path).student.path is None
    and load_config(path).data.source in ("arithmetic", "pointers")
)  # fmt: skip


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("pair"))


def run(pair, runs, devices, *changes):
    """Metrics, trajectories and summary of a greedy run."""
    greedy = ["rollout.temperature=0.0", "run.steps=3", "run.eval_every=0", "run.sample_every=1", "run.seed=3"]
    process = spawn("train", words(pair, runs, *greedy, *ODD, *changes), devices)
    assert process.returncode == 0, process.stderr
    folder = runs / "tiny"
    summary = json.loads((folder / "summary.json").read_text())
    return read_lines(folder / "metrics.jsonl"), read_lines(folder / "trajectories.jsonl"), summary


@pytest.fixture(scope="module")
def alone(pair, tmp_path_factory):
    return run(pair, tmp_path_factory.mktemp("alone"), 1)


@pytest.mark.parametrize(
    ("devices", "mesh"), [pytest.param(*m, marks=[pytest.mark.long] if m[0] != 6 else [], id=str(m[0])) for m in MESHES]
)
def test_added_rows_change_nothing(devices, mesh, pair, alone, tmp_path):
    metrics, trajectories, summary = run(pair, tmp_path, devices, *mesh)
    counted = ("tokens_student", "tokens_teacher", "tokens_discarded", "rewinds", "strayed", "truncated", "length_max")
    for ours, theirs in zip(metrics, alone[0], strict=True):
        for name in ("loss", "grad_norm", "value", "length_mean"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-6), name
        for name in (*counted, *(n for n in theirs if n.startswith("tokens/"))):
            assert ours[name] == theirs[name], name
    assert [line["tokens"] for line in trajectories] == [line["tokens"] for line in alone[1]]
    for when in ("before", "after"):
        ours, theirs = dict(summary[when]), dict(alone[2][when])
        assert ours.pop("reverse_kl") == pytest.approx(theirs.pop("reverse_kl"), rel=1e-4)
        assert ours == theirs


@pytest.mark.long
@pytest.mark.parametrize("devices", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("recipe", SHIPPED)
def test_shipped_recipes(recipe, devices, tmp_path):
    few = ["run.steps=2", "eval.prompts=20", f"run.dir={tmp_path}", "run.name=few"]
    process = spawn("train", [str(ROOT / "configs" / f"{recipe}.yaml"), *few], devices)
    assert process.returncode == 0, process.stderr
    assert len(read_lines(tmp_path / "few" / "metrics.jsonl")) == 2
