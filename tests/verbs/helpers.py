"""A tiny pair with random weights, the words of a tiny run on it, and the verbs as a user starts them."""

import functools
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax

from motab_jax.data.tasks import arithmetic
from motab_jax.data.tokenizer import load_tokenizer
from motab_jax.models.architecture import ModelConfig
from motab_jax.models.hf.pretrained import save_pretrained
from motab_jax.models.transformer import init
from tests.verbs.schema import RECORD_SCHEMA, faults

ROOT = Path(__file__).resolve().parents[2]
STEPS = 24
POSITIONS = 512
SPAWN_LIMIT = 1200  # seconds: against a process that hangs, and no measure of speed

RECORD = {
    *("id", "sample", "prompt", "prompt_tokens", "text", "tokens", "sources", "target_text", "steps", "rewinds"),
    *("finish_reason", "correct"),
}


def write_pair(folder: Path, heads: int = 4) -> Path:
    """folder/student and folder/teacher: random Qwen3 shapes over the arithmetic tokenizer."""
    arithmetic.write_tokenizer(folder / "tokenizer")
    tokenizer = load_tokenizer(folder / "tokenizer")
    for name, width, layers, seed in (("teacher", 48, 3, 1), ("student", 32, 2, 2)):
        config = ModelConfig(
            "qwen3", len(tokenizer), width, 2 * width, layers, heads, 2, 8, POSITIONS, qk_norm=True, tied=True
        )
        params = init(config, jax.random.key(seed), std=0.2)
        stop = {"eos_token_id": tokenizer.eos_token_id}
        save_pretrained(folder / name, params, config, tokenizer=tokenizer, generation_config=stop)
    return folder


def words(pair: Path, runs: Path, *changes: str) -> list[str]:
    """The words of a run of a few seconds; later words win."""
    return [
        str(ROOT / "configs" / "quickstart.yaml"),
        f"student.path={pair / 'student'}",
        f"teacher.path={pair / 'teacher'}",
        f"run.dir={runs}",
        "run.name=tiny",
        f"run.steps={STEPS}",
        "run.save_every=5",
        "run.eval_every=10",
        "run.sample_every=4",
        "data.count=30",
        "rollout.batch_size=8",
        "rollout.samples_per_prompt=2",
        "rollout.max_new_tokens=24",
        "rollout.segment_tokens=8",
        "eval.prompts=12",
        "eval.batch_size=8",
        "eval.reverse_kl=true",
        *changes,
    ]


def environment(devices: int = 1) -> dict[str, str]:
    """As a user's: one device, unless it is to be the 8 of the tests."""
    count = f"--xla_force_host_platform_device_count={devices}" if devices > 1 else ""
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", count, os.environ.get("XLA_FLAGS", "")).strip()
    return {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}


def start(verb: str, arguments: list[str], devices: int = 1) -> subprocess.Popen:
    """The verb in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", f"motab_jax.{verb}", *arguments],
        env=environment(devices), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def start_all(
    verb: str, arguments: list[str], count: int = 2, devices: int = 2, own: Sequence[list[str]] = ()
) -> list[subprocess.Popen]:
    """The verb in several processes that are one run, each with devices, and perhaps words, of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    common = {**environment(devices), "JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
    return [
        subprocess.Popen(
            [sys.executable, "-m", f"motab_jax.{verb}", *arguments, *(own[number] if own else [])],
            env={**common, "JAX_PROCESS_ID": str(number)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number in range(count)
    ]  # fmt: skip


def finish_all(processes: list[subprocess.Popen], limit: float = SPAWN_LIMIT) -> list[subprocess.CompletedProcess]:
    """Wait for all of them, together no longer than `limit` seconds."""
    deadline, done = time.monotonic() + limit, []
    try:
        for process in processes:
            out, err = process.communicate(timeout=max(deadline - time.monotonic(), 0.1))
            done.append(subprocess.CompletedProcess(process.args, process.returncode, out, err))
    finally:
        for process in processes:
            process.kill()
    return done


def spawn(verb: str, arguments: list[str], devices: int = 1) -> subprocess.CompletedProcess:
    """Run a verb to its end."""
    with start(verb, arguments, devices) as process:
        try:
            out, err = process.communicate(timeout=SPAWN_LIMIT)
        finally:
            process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def stop_at(
    arguments: list[str], log: Path, step: int, number: int, *, verb: str = "train", devices: int = 1
) -> subprocess.CompletedProcess:
    """Run a verb, and send the signal as soon as the log holds `step` lines."""
    with start(verb, arguments, devices) as process:
        try:
            deadline = time.monotonic() + SPAWN_LIMIT
            while process.poll() is None and time.monotonic() < deadline:
                if log.is_file() and log.read_bytes().count(b"\n") >= step:
                    process.send_signal(number)
                    break
                time.sleep(0.001)
            out, err = process.communicate(timeout=SPAWN_LIMIT)
        finally:
            process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def read_lines(path: Path) -> list[dict]:
    """The objects of a JSON lines file; a half line is an error."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def without_clocks(path: Path) -> list[dict]:
    """A metrics log less what the clock says."""
    return [{k: v for k, v in line.items() if k not in ("seconds", "tokens_per_second")} for line in read_lines(path)]


@functools.cache
def tokenizer_of(folder: Path):
    """The pair's tokenizer."""
    return load_tokenizer(folder)


def check_record(record: dict, tokenizer) -> None:
    """What holds of every trajectory record of a run with root, suffix and the spliced target."""
    assert faults(record, RECORD_SCHEMA) == []

    def decode(ids):
        return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    tokens, steps = record["tokens"], record["steps"]
    assert record["text"] == decode(tokens) == record["target_text"]
    assert len(record["sources"]) == len(tokens) and set(record["sources"]) <= {"student", "teacher"}
    assert record["finish_reason"] in ("stop", "length") and record["correct"] in (True, False, None)
    stopped = record["finish_reason"] == "stop"
    assert [step["start"] for step in steps] == [0, *(step["end"] for step in steps)][: len(steps)]
    assert (steps[-1]["end"] if steps else 0) == len(tokens) - stopped, "steps cover all tokens but a stop token"
    for step in steps:
        assert set(record["sources"][step["start"] : step["end"]]) == {step["source"]}
        check_step(step)
    for rewind in record["rewinds"]:
        check_rewind(rewind, record, decode)


def check_step(step: dict) -> None:
    """A step is not empty, its value is a probability, and it strays when the value is below the boundary."""
    assert set(step) == {"start", "end", "source", "value", "entropy", "boundary", "stray"}
    assert step["start"] < step["end"] and 0 < step["value"] <= 1 and step["entropy"] >= 0 and step["boundary"] >= 0
    if step["source"] == "student":
        assert step["stray"] == (step["value"] < step["boundary"])


def check_rewind(rewind: dict, record: dict, decode) -> None:
    """The breaching step strayed; what was discarded runs from the root step's start; the teacher writes from there."""
    discarded = rewind["discarded_steps"]
    assert set(rewind) == {"breach_step", "root_step", "discarded_tokens", "discarded_text", "discarded_steps"}
    assert 0 <= rewind["root_step"] <= rewind["breach_step"] == rewind["root_step"] + len(discarded) - 1
    assert discarded[-1]["stray"] and all(step["source"] == "student" for step in discarded)
    begin, end = discarded[0]["start"], discarded[-1]["end"]
    assert len(rewind["discarded_tokens"]) - (end - begin) in (0, 1), "the steps, and a stop token after them"
    assert rewind["discarded_text"] == decode(rewind["discarded_tokens"])
    assert set(record["sources"][:begin]) <= {"student"} and set(record["sources"][begin:]) <= {"teacher"}
    if rewind["root_step"]:
        assert record["steps"][rewind["root_step"] - 1]["end"] == begin
