"""A run from the command line: what its folder holds, and that a stopped run goes on as if it had not been stopped."""

import json
import random
import re
import signal

import pytest
import yaml

from motab_jax.config import load_config
from motab_jax.runtime.cli import STOPPED
from tests.verbs.helpers import (
    RECORD,
    STEPS,
    check_record,
    read_lines,
    spawn,
    stop_at,
    tokenizer_of,
    without_clocks,
    words,
)

METRICS = {
    *("step", "epoch", "loss", "loss/student", "loss/teacher", "loss/flawed", "loss/transition"),
    *("tokens_student", "tokens_teacher", "tokens_discarded", "strayed", "rewinds", "value", "boundary"),
    *("length_mean", "length_max", "truncated", "learning_rate", "grad_norm", "skipped"),
    *("tokens_per_second", "seconds"),
}
PHASES = {"student_decode", "teacher_scoring", "teacher_writing"}
SECONDS = PHASES | {"rollout", "update", "relayout", "host", "idle", "compile"}


def test_the_run_folder_is_complete(finished, pair):
    folder, _ = finished
    config = load_config(folder / "config.yaml")
    assert config == load_config(words(pair, folder.parent)[0], words(pair, folder.parent)[1:])
    metrics = read_lines(folder / "metrics.jsonl")
    assert [line["step"] for line in metrics] == list(range(1, STEPS + 1))
    for line in metrics:
        assert set(line) >= METRICS
        evaluated = {"evaluation"} if "eval" in line else set()
        assert set(line["seconds"]) == SECONDS | evaluated and min(line["seconds"].values()) >= 0
        assert sum(line["seconds"][name] for name in PHASES) == pytest.approx(line["seconds"]["rollout"], abs=1e-6)
        assert 0 <= line["padding"] < 1 and 0 < line["occupancy"] <= 1 and 0 <= line["dead_columns"] < 1
        assert line["target_bytes_per_token"] == 48 * 4
        # Keys and values of 5 layers in both models, 2 heads of 8 numbers each, in 8 slots.
        columns, rest = divmod(line["cache_bytes"], 2 * 5 * 2 * 8 * 4 * 8)
        assert rest == 0 and 0 < columns - 24 - 8 <= config.data.max_prompt_tokens
        assert line["tokens_per_second"] > 0
    assert [line["step"] for line in metrics if "eval" in line] == [10, 20]
    assert metrics[-1]["epoch"] == STEPS * 4 // 30
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"20", str(STEPS)}
    assert (folder / "export" / "model.safetensors").is_file()


def test_the_summary_says_what_happened(finished):
    folder, process = finished
    summary = json.loads((folder / "summary.json").read_text())
    metrics = read_lines(folder / "metrics.jsonl")
    assert summary["steps"] == STEPS and summary["skipped"] == 0 and summary["held_out_prompts"] == 12
    assert summary["tokens"] == sum(line["tokens_student"] + line["tokens_teacher"] for line in metrics)
    assert summary["accuracy_before"] == summary["before"]["accuracy"]
    assert summary["accuracy_after"] == summary["after"]["accuracy"]
    assert summary["after"]["reverse_kl"] != summary["before"]["reverse_kl"], "the student has changed"
    last = process.stdout.splitlines()
    assert any("Held-out metrics" in line for line in last) and str(STEPS) in last[-1]
    assert process.stderr == "" and "\x1b" not in process.stdout, "plain lines where there is no terminal"


def test_each_program_compiles_once(finished):
    summary = json.loads((finished[0] / "summary.json").read_text())
    assert summary["compiles"] == {"rollout": 1, "update": 1, "generate": 1}
    compiling = [line["seconds"]["compile"] for line in read_lines(finished[0] / "metrics.jsonl")]
    assert 0 < compiling[0] == max(compiling)
    assert not any(compiling[1:5]), "a checkpoint's digests come later"
    assert re.search(r"^compiled \d+ programs in \d+\.\d s \(\d+ from the cache\)$", finished[1].stdout, re.MULTILINE)


def test_the_second_start_compiles_little(pair, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
    command = [*words(pair, tmp_path, "run.steps=1"), *prompts_alone(tmp_path)]
    first, programs = start_and_summarise(command, tmp_path, "one"), kept_programs(tmp_path)
    second = start_and_summarise(command, tmp_path, "two")
    assert first["compile_cached"] == 0 and second["compile_cached"] >= len(programs) >= 2
    assert kept_programs(tmp_path) == programs, "a large program was compiled anew"


def kept_programs(folder):
    """The large ones: how long a small one takes, and so whether it is kept, differs from start to start."""
    names = ("jit_generate", "jit_train_step")
    return {path.name for path in (folder / "compiled").glob("*-cache") if path.name.startswith(names)}


def start_and_summarise(command, runs, name):
    process = spawn("train", [*command, f"run.name={name}"])
    assert process.returncode == 0, process.stderr
    return json.loads((runs / name / "summary.json").read_text())


def test_a_profile_of_one_step(finished, pair, tmp_path):
    process = spawn("train", [*words(pair, tmp_path), "--profile"])
    assert process.returncode == 0, process.stderr
    assert f"profiling step 3: the trace goes to {tmp_path / 'tiny' / 'profile'}" in process.stdout
    traces = list((tmp_path / "tiny" / "profile").rglob("*.xplane.pb"))
    assert len(traces) == 1 and traces[0].stat().st_size > 1000
    assert_same_run(tmp_path / "tiny", finished[0])


def test_trajectories_have_the_records_of_synthesize(finished, pair):
    records = read_lines(finished[0] / "trajectories.jsonl")
    assert [record["step"] for record in records] == [step for step in (1, 4, 8, 12, 16, 20, 24) for _ in range(3)]
    assert sum(len(record["rewinds"]) for record in records) >= 5
    for record in records:
        assert set(record) == RECORD | {"step"}
        check_record(record, tokenizer_of(pair / "teacher"))


def assert_same_run(folder, uninterrupted):
    """Metrics and trajectories line for line, and the student byte for byte."""
    assert without_clocks(folder / "metrics.jsonl") == without_clocks(uninterrupted / "metrics.jsonl")
    for name in ("trajectories.jsonl", "export/model.safetensors"):
        assert (folder / name).read_bytes() == (uninterrupted / name).read_bytes(), name
    one, other = (json.loads((path / "summary.json").read_text()) for path in (folder, uninterrupted))
    assert all(one[key] == other[key] for key in ("before", "after", "steps", "tokens"))


def test_a_killed_run_goes_on_to_the_same_metrics(finished, pair, tmp_path):
    command, folder = words(pair, tmp_path), tmp_path / "tiny"
    killed = stop_at(command, folder / "metrics.jsonl", random.Random(7).randint(6, STEPS - 4), signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL and not (folder / "summary.json").exists()
    again = spawn("train", command)
    assert again.returncode == 0, again.stderr
    assert "resuming at step" in again.stdout
    assert_same_run(folder, finished[0])


def test_a_stopped_run_saves_and_goes_on(finished, pair, tmp_path):
    command, folder = words(pair, tmp_path), tmp_path / "tiny"
    stopped = stop_at(command, folder / "metrics.jsonl", 7, signal.SIGTERM)
    assert stopped.returncode == STOPPED, stopped.stderr
    done = len(read_lines(folder / "metrics.jsonl"))
    assert 7 <= done < STEPS and (folder / "checkpoints" / str(done)).is_dir()
    assert f"stopped by a signal at step {done}" in stopped.stdout
    again = spawn("train", command)
    assert again.returncode == 0, again.stderr
    assert f"resuming at step {done}" in again.stdout
    assert_same_run(folder, finished[0])
    finished_again = spawn("train", command)
    assert finished_again.returncode == 0, finished_again.stderr
    assert_same_run(folder, finished[0])


def test_the_written_configuration_is_plain_yaml(finished):
    tree = yaml.safe_load((finished[0] / "config.yaml").read_text())
    assert tree["run"]["steps"] == STEPS and tree["rollout"]["samples_per_prompt"] == 2


def prompts_alone(folder):
    """The words for a file of prompts, with nothing held out."""
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"id": n, "prompt": f"{n}+2-{n % 7}="}) + "\n" for n in range(10)))
    return ["data.source=jsonl", f"data.path={path}"]


def test_prompts_of_ones_own_without_evaluation(pair, tmp_path):
    """A student cut from the teacher, a file of prompts, the stitched target: no held-out figures, all else as ever."""
    changes = ["student.path=null", "student.init_from_teacher.layers=[0,2]", "objective.target=stitched"]
    changes += [*prompts_alone(tmp_path), "run.steps=2", "run.sample_every=1"]
    process = spawn("train", words(pair, tmp_path, *changes))
    assert process.returncode == 0, process.stderr
    summary = json.loads((tmp_path / "tiny" / "summary.json").read_text())
    assert summary["steps"] == 2 and summary["after"] is summary["accuracy_before"] is None
    assert summary["compiles"] == {"rollout": 1, "update": 1}
    records = read_lines(tmp_path / "tiny" / "trajectories.jsonl")
    assert {record["correct"] for record in records} == {None}
    assert any("However," in record["target_text"] for record in records)
    assert json.loads((tmp_path / "tiny" / "export" / "config.json").read_text())["num_hidden_layers"] == 2
