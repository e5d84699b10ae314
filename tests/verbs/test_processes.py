"""Several processes, as on several hosts: the same run as one process's; what happens when one of them dies."""

import json
import shutil
import signal
import time

import pytest

from motab_jax.runtime.cli import STOPPED
from tests.verbs.helpers import ROOT, finish_all, read_lines, spawn, start_all, without_clocks, words

STEPS = 6
LIMIT = 60  # seconds in which the others see that a process is gone


def close(value):
    return pytest.approx(value, rel=1e-4, abs=1e-6)


def command(pair, runs, *changes):
    """Greedy, so that the last bits of a sum decide nothing."""
    greedy = ["rollout.temperature=0.0", f"run.steps={STEPS}", "run.save_every=2", "run.sample_every=1"]
    return words(pair, runs, *greedy, "run.eval_every=0", *changes)


@pytest.fixture(scope="module")
def alone(pair, tmp_path_factory):
    """The run of one process with one device."""
    runs = tmp_path_factory.mktemp("alone")
    process = spawn("train", command(pair, runs))
    assert process.returncode == 0, process.stderr
    return runs / "tiny"


@pytest.fixture(scope="module")
def together(pair, tmp_path_factory):
    """The run of two processes with two devices each."""
    runs = tmp_path_factory.mktemp("together")
    for process in finish_all(start_all("train", command(pair, runs, "mesh.fsdp=2", "mesh.dcn_data=2"))):
        assert process.returncode == 0, process.stderr
    return runs / "tiny"


def test_two_processes_run_as_one(alone, together):
    one, two = (read_lines(folder / "metrics.jsonl") for folder in (alone, together))
    assert [line["step"] for line in two] == list(range(1, STEPS + 1)), "one process writes"
    for ours, theirs in zip(two, one, strict=True):
        for name in ("loss", "grad_norm", "value", "learning_rate", "length_mean"):
            assert ours[name] == close(theirs[name]), name
        assert [ours[name] for name in ("tokens_student", "tokens_teacher", "tokens_discarded")] == [
            theirs[name] for name in ("tokens_student", "tokens_teacher", "tokens_discarded")
        ]
    one, two = (read_lines(folder / "trajectories.jsonl") for folder in (alone, together))
    assert [line["tokens"] for line in two] == [line["tokens"] for line in one]
    one, two = (json.loads((folder / "summary.json").read_text()) for folder in (alone, together))
    assert one["after"]["accuracy"] == two["after"]["accuracy"]
    assert two["after"]["reverse_kl"] == close(one["after"]["reverse_kl"])
    assert (together / "export" / "model.safetensors").is_file()


@pytest.mark.parametrize(("devices", "mesh"), [(1, {}), (8, {"fsdp": 4, "tensor": 2})])
def test_a_checkpoint_of_two_processes_goes_on_in_one(devices, mesh, pair, together, tmp_path):
    """The run was done: going on restores its last checkpoint and writes the student again."""
    shutil.copytree(together, tmp_path / "tiny")
    shutil.rmtree(tmp_path / "tiny" / "export")
    words = command(pair, tmp_path, *(f"mesh.{name}={size}" for name, size in mesh.items()))
    process = spawn("train", words, devices)
    assert process.returncode == 0, process.stderr
    assert f"resuming at step {STEPS}" in process.stdout
    again, before = (folder / "export" / "model.safetensors" for folder in (tmp_path / "tiny", together))
    assert again.read_bytes() == before.read_bytes()


def wait_for(folder, lines, processes):
    """Until the run has written so many steps."""
    log, deadline = folder / "metrics.jsonl", time.monotonic() + 200
    while not (log.is_file() and log.read_bytes().count(b"\n") >= lines):
        assert time.monotonic() < deadline and all(process.poll() is None for process in processes)
        time.sleep(0.01)


@pytest.mark.long
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_takes_the_other_with_it_and_the_run_goes_on(victim, pair, together, tmp_path):
    words = command(pair, tmp_path, "mesh.fsdp=2")
    processes = start_all("train", words)
    wait_for(tmp_path / "tiny", 3, processes)
    processes[victim].send_signal(signal.SIGKILL)
    ends = finish_all(processes, LIMIT)
    assert ends[victim].returncode == -signal.SIGKILL
    other = ends[1 - victim]
    assert other.returncode not in (0, STOPPED)
    assert "another process of this run died" in other.stderr or "another task died" in other.stderr, other.stderr
    if victim:  # once is enough
        for process in finish_all(start_all("train", words)):
            assert process.returncode == 0, process.stderr
        assert without_clocks(tmp_path / "tiny" / "metrics.jsonl") == without_clocks(together / "metrics.jsonl")


def test_a_run_folder_that_is_not_shared_is_refused_at_the_start(pair, tmp_path):
    each = [[f"run.dir={tmp_path / str(number)}"] for number in range(2)]
    ends = finish_all(start_all("train", command(pair, tmp_path), own=each))
    assert [end.returncode for end in ends] == [2, 2], ends
    for number, end in enumerate(ends):
        lines = [line for line in end.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and str(tmp_path / str(number)) in lines[0], "each has a folder of its own to name"
        assert "not all processes of this run see the same folder" in lines[0] and "Traceback" not in end.stderr
    assert not list(tmp_path.glob("*/tiny/.seen-*"))


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.long), pytest.param(8, marks=pytest.mark.long)])
def test_a_mistake_is_printed_once_and_all_leave_with_it(count, tmp_path):
    words = [str(ROOT / "configs" / "quickstart.yaml"), f"run.dir={tmp_path}", "eval.preset=[math500,gsm8k]"]
    ends = finish_all(start_all("train", words, count, devices=1))
    assert [end.returncode for end in ends] == [2] * count, ends
    lines = [line for end in ends for line in end.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "eval.preset is a list" in lines[0] and "Traceback" not in ends[0].stderr


@pytest.mark.long
def test_a_signal_to_one_stops_all(pair, tmp_path):
    processes = start_all("train", command(pair, tmp_path, "mesh.fsdp=2", "run.steps=200"))
    wait_for(tmp_path / "tiny", 2, processes)
    processes[1].send_signal(signal.SIGTERM)
    ends = finish_all(processes)
    assert [process.returncode for process in ends] == [STOPPED, STOPPED], [process.stderr for process in ends]
    done = len(read_lines(tmp_path / "tiny" / "metrics.jsonl"))
    assert f"stopped by a signal at step {done}" in ends[0].stdout


@pytest.mark.long
def test_records_of_two_processes_are_those_of_one(pair, tmp_path):
    base = [*command(pair, tmp_path), "data.count=6"]
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    alone = spawn("synthesize", [*base, f"output={one}"])
    assert alone.returncode == 0, alone.stderr
    for process in finish_all(start_all("synthesize", [*base, f"output={two}", "rollout.batch_size=8"])):
        assert process.returncode == 0, process.stderr
    assert [line["tokens"] for line in read_lines(two)] == [line["tokens"] for line in read_lines(one)]
