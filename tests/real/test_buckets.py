"""Runs on a bucket of a real server: trained, killed at any moment, resumed, evaluated, exported, synthesized."""

import json
import random
import signal
import time

import pytest

from motab_jax.config import EnvironmentFailure, UserError
from motab_jax.runtime import staging, storage
from motab_jax.runtime.folder_lock import FolderLock
from tests.real.bucket_server import binary, make_bucket, serve, variables
from tests.verbs.helpers import finish_all, read_lines, spawn, start, start_all, without_clocks, words, write_pair

pytestmark = pytest.mark.real

STEPS = 6
KILLS = 5  # moments of one life
CHANGES = [f"run.steps={STEPS}", "run.save_every=2", "run.sample_every=1", "run.eval_every=3", "run.upload_every=1"]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The URL of the server; this process's gs:// is on it, and that of those it starts."""
    folder = tmp_path_factory.mktemp("server")
    with serve(binary(), folder / "log") as url, pytest.MonkeyPatch.context() as patch:
        make_bucket(url, "tests")
        for name, value in variables(url, folder / "cache").items():
            patch.setenv(name, value)
        yield url


@pytest.fixture(scope="module")
def disk(server, tmp_path_factory):
    """A folder with the pair, and with what an undisturbed run on disk wrote."""
    folder = write_pair(tmp_path_factory.mktemp("disk"))
    process = spawn("train", words(folder, folder, *CHANGES))
    assert process.returncode == 0, process.stderr
    return folder


@pytest.fixture(scope="module")
def pair(disk):
    """The pair on the bucket, as gs://tests/pair."""
    for role in ("student", "teacher"):
        for path in (disk / role).iterdir():
            staging.put(path, storage.to_path(f"gs://tests/pair/{role}/{path.name}"))
    return "gs://tests/pair"


def command(pair, runs, *changes):
    """The words of a run on the bucket."""
    models = [f"student.path={pair}/student", f"teacher.path={pair}/teacher", f"run.dir={runs}"]
    return [*words(storage.Path("/"), storage.Path("/")), *CHANGES, *models, *changes]


def fetched(run, target):
    """A run folder's files on this machine, without its checkpoints."""
    for name in ("metrics.jsonl", "trajectories.jsonl", "summary.json", "export/model.safetensors"):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes((storage.to_path(run) / name).read_bytes())
    return target


def newest_step(run):
    """The newest checkpoint that is complete, or 0."""
    folder = storage.to_path(run) / "checkpoints"
    steps = [path for path in folder.iterdir() if path.name.isdigit()] if folder.exists() else []
    return max([int(path.name) for path in steps if (path / "commit_success.txt").exists()], default=0)


def logged_steps(run):
    """The steps of the log on the bucket; a last line may be incomplete."""
    path = storage.to_path(run) / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line)["step"] for line in lines]


def check_equal(run, disk, tmp_path):
    """The run on the bucket is the undisturbed one on disk: its metrics, its samples and its weights."""
    ours = fetched(run, tmp_path / "fetched")
    assert without_clocks(ours / "metrics.jsonl") == without_clocks(disk / "tiny" / "metrics.jsonl")
    assert read_lines(ours / "trajectories.jsonl") == read_lines(disk / "tiny" / "trajectories.jsonl")
    for name in ("summary.json",):
        one, two = (json.loads((folder / name).read_text()) for folder in (ours, disk / "tiny"))
        assert (one["before"], one["after"]) == (two["before"], two["after"])
    name = "export/model.safetensors"
    assert (ours / name).read_bytes() == (disk / "tiny" / name).read_bytes()


def test_a_run_that_is_killed_at_any_moment_ends_like_one_that_never_was(disk, pair, tmp_path):
    run, moments = "gs://tests/runs/tiny", random.Random(1)
    arguments = command(pair, "gs://tests/runs/")
    for _ in range(KILLS):
        with start("train", arguments) as process:
            time.sleep(moments.uniform(3, 14))
            process.kill()
            assert process.wait() in (0, -signal.SIGKILL), process.communicate()[1]
        newest = newest_step(run)
        assert logged_steps(run)[:newest] == list(range(1, newest + 1)), "the log holds what the checkpoint has done"
    process = spawn("train", arguments)
    assert process.returncode == 0, process.stderr
    assert "the student is in gs://tests/runs/tiny/export" in process.stdout
    check_equal(run, disk, tmp_path)


def test_the_verbs_read_and_write_the_bucket(disk, pair, tmp_path):
    run = "gs://tests/verbs/tiny"
    process = spawn("train", command(pair, "gs://tests/verbs", "log.tensorboard=false"))
    assert process.returncode == 0, process.stderr
    check_equal(run, disk, tmp_path)
    again, held_out = "gs://tests/again", tmp_path / "held_out.jsonl"
    for verb, arguments in (
        ("export", [run, again, "step=4"]),
        ("evaluate", [*command(pair, "gs://tests/verbs"), f"student.path={run}/export", "output=gs://tests/held_out.jsonl"]),
        ("evaluate", [*command(pair, "gs://tests/verbs"), f"student.path={disk}/tiny/export", f"output={held_out}"]),
        ("report", [run, "svg=gs://tests/run.svg"]),
    ):  # fmt: skip
        process = spawn(verb, arguments)
        assert process.returncode == 0, (verb, process.stderr)
    names = {path.name for path in storage.to_path(again).iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"} <= names
    assert storage.to_path("gs://tests/held_out.jsonl").read_bytes() == held_out.read_bytes()
    assert storage.to_path("gs://tests/run.svg").read_text().startswith("<svg")
    process = spawn("export", [run, again])
    assert process.returncode == 2 and f"{again}: there is something in it already" in process.stderr


def test_records_are_resumed_on_the_bucket(disk, pair, tmp_path):
    output = storage.to_path("gs://tests/records/r.jsonl")
    base, whole = command(pair, "gs://tests/unused"), tmp_path / "whole.jsonl"
    process = spawn("synthesize", [*base, f"output={whole}"])
    assert process.returncode == 0, process.stderr
    arguments = [*base, f"output={output}", "sft=gs://tests/sft/s.jsonl"]
    with start("synthesize", arguments) as process:
        while process.poll() is None and not output.exists():
            time.sleep(0.01)
        process.kill()
    written = output.read_bytes()
    assert whole.read_bytes().startswith(written[: written.rfind(b"\n") + 1])
    process = spawn("synthesize", arguments)
    assert process.returncode == 0 and f"{output}: 60 of 60 records" in process.stdout, process.stderr
    assert output.read_bytes() == whole.read_bytes()
    assert storage.to_path("gs://tests/sft/s.jsonl").read_bytes().count(b"\n") == 60
    process = spawn("synthesize", [*arguments, "run.seed=7"])
    assert process.returncode == 2 and f"{output} was written by another configuration" in process.stderr


def test_two_processes_are_killed_and_go_on(disk, pair):
    run = "gs://tests/two/tiny"
    arguments = command(pair, "gs://tests/two", "rollout.temperature=0.0", "mesh.fsdp=2")
    processes = start_all("train", arguments, devices=1)
    while newest_step(run) < 2:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.02)
    for process in processes:
        process.kill()
        process.communicate()
    assert set(range(1, newest_step(run) + 1)) <= set(logged_steps(run))
    for process in finish_all(start_all("train", arguments, devices=1)):
        assert process.returncode == 0, process.stderr
    assert logged_steps(run) == list(range(1, STEPS + 1))
    assert (storage.to_path(run) / "export" / "config.json").exists()


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        (["run.dir=gs://missing/runs"], ["gs://missing/runs/tiny", "no such bucket"]),
        (["student.path=gs://tests/nothing"], ["gs://tests/nothing", "no such folder"]),
        (["data.source=jsonl", "data.path=gs://tests/nothing.jsonl"], ["gs://tests/nothing.jsonl", "no such file"]),
        (["run.dir=s3://tests/runs"], ["s3://tests/runs", "s3"]),
    ],
)
def test_what_is_not_there_is_one_line(changes, parts, pair):
    process = spawn("train", command(pair, "gs://tests/wrong", *changes))
    assert process.returncode == 2, process.stderr
    said = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and "Traceback" not in process.stderr, process.stderr
    assert all(part in said[0] for part in parts), said


def test_a_file_is_copied_once_for_each_of_its_versions(server, tmp_path):
    place = storage.to_path("gs://tests/copies/a b.jsonl")
    place.write_text("one\n")
    first = staging.local_copy(place)
    assert first.read_text() == "one\n" and staging.local_copy(place) == first
    assert staging.shown(f"{first}, line 1") == "gs://tests/copies/a b.jsonl, line 1"
    place.write_text("two\n")
    assert staging.local_copy(place).read_text() == "two\n" and first.read_text() == "one\n"


def test_a_lock_on_the_bucket_has_one_owner(server):
    folder = storage.to_path("gs://tests/locked")
    with FolderLock(folder):
        with pytest.raises(EnvironmentFailure, match="another run is working"):
            FolderLock(folder)
    assert not (folder / ".lock").exists()
    (folder / ".lock").write_text('{"host": "elsewhere", "process": 7}')
    with FolderLock(folder, beat=0.2, watch=1):
        assert json.loads((folder / ".lock").read_text())["process"] != 7


def test_a_server_that_does_not_answer_is_no_mistake_of_the_users(server, tmp_path):
    import fsspec

    folder = storage.to_path("gs://tests/quiet")
    staged = staging.Staged(folder)
    (staged.local / "log").write_text("1")
    staged.push()
    assert (folder / "log").read_text() == "1"
    with pytest.raises(UserError, match="no such bucket"), storage.BucketErrors("gs://other"):
        fsspec.filesystem("gs").cat("gs://other/x")
    fs = fsspec.filesystem("gs", endpoint_url="http://127.0.0.1:9", skip_instance_cache=True)
    with pytest.raises(EnvironmentFailure, match="could not be used"), storage.BucketErrors("gs://tests"):
        fs.cat("gs://tests/x")
