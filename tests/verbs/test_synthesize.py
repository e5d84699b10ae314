"""The records of `synthesize`: their fields, what holds between them, and that the batch leaves no trace in them.

And the file that holds them: a run that was killed goes on to the same file; what is damaged or another's is refused.
"""

import dataclasses
import json
import random
import shutil
import signal

import pytest

import motab_jax.data.tokenizer as tokenizer_module
from motab_jax import synthesize
from motab_jax.config import UserError, load_config
from motab_jax.data.extract import extract_answer
from motab_jax.runtime.cli import STOPPED
from motab_jax.session.prompts import read_prompts
from motab_jax.synthesis import rolling
from motab_jax.synthesis.record_log import FIELDS, open_existing
from tests.verbs.helpers import RECORD, check_record, read_lines, spawn, stop_at, tokenizer_of, words
from tests.verbs.schema import RECORD_SCHEMA, faults

PROMPTS, RECORDS = 21, 42  # in batches of 8: the last one is not full
COUNT = f"data.count={PROMPTS}"


def synthesize_to(output, pair, *changes: str) -> None:
    """The records of the prompts, twice each."""
    assert synthesize.work([*words(pair, output.parent, COUNT, *changes), f"output={output}"]) == 0


def synthesized(pair, folder, *changes: str) -> list[dict]:
    synthesize_to(folder / "out.jsonl", pair, *changes)
    return read_lines(folder / "out.jsonl")


@pytest.fixture(scope="module")
def written(pair, tmp_path_factory):
    output = tmp_path_factory.mktemp("records") / "out.jsonl"
    synthesize_to(output, pair)
    return output


@pytest.fixture(scope="module")
def records(written):
    return read_lines(written)


def test_a_record_for_every_prompt_and_sample(records, pair):
    assert len(records) == RECORDS and [record["sample"] for record in records] == [0, 1] * PROMPTS
    assert len({record["id"] for record in records}) == PROMPTS
    for record in records:
        assert set(record) == RECORD
        assert record["prompt_tokens"] == tokenizer_of(pair / "teacher").encode(record["prompt"])
        check_record(record, tokenizer_of(pair / "teacher"))


def test_the_records_show_backtracking(records):
    rewound = [record for record in records if record["rewinds"]]
    assert len(rewound) >= 10
    assert {source for record in rewound for source in record["sources"]} >= {"teacher"}
    assert {record["finish_reason"] for record in records} == {"stop", "length"}


def test_seqkd_writes_the_teachers_own_text(records, pair, tmp_path):
    found = synthesized(pair, tmp_path, "method=seqkd", "data.count=8")
    assert len(found) == 16
    for record in found:
        assert not faults(record, RECORD_SCHEMA) and not record["steps"], "nobody judges the teacher's steps"
        assert set(record["sources"]) == {"teacher"} and not record["rewinds"]
    assert [record["tokens"] for record in found] != [record["tokens"] for record in records[:16]]


def test_a_recipe_in_which_nobody_writes_is_refused(pair, tmp_path):
    with pytest.raises(UserError, match="nothing to generate"):
        synthesized(pair, tmp_path, "method=sft", "rollout.samples_per_prompt=1")


def test_samples_of_a_prompt_differ(records):
    assert any(one["tokens"] != other["tokens"] for one, other in zip(records[::2], records[1::2], strict=True))


def real_numbers(record: dict) -> list[float]:
    """Values, entropies and boundaries, those of discarded steps included; taken out of the record."""
    steps = record["steps"] + [step for rewind in record["rewinds"] for step in rewind["discarded_steps"]]
    return [step.pop(name) for step in steps for name in ("value", "entropy", "boundary")]


def test_neither_batch_nor_segment_changes_a_trajectory(records, pair, tmp_path):
    others = synthesized(pair, tmp_path, "rollout.batch_size=16", "rollout.segment_tokens=5")
    for one, other in zip(json.loads(json.dumps(records)), others, strict=True):
        assert real_numbers(one) == pytest.approx(real_numbers(other), abs=1e-5)
        assert one == other


def test_the_stitched_target_keeps_what_was_discarded(records, pair, tmp_path):
    tokenizer = tokenizer_of(pair / "teacher")
    stitched = synthesized(pair, tmp_path, "objective.target=stitched")
    for one, other in zip(records, stitched, strict=True):
        assert one | {"target_text": ""} == other | {"target_text": ""}
        if one["rewinds"]:
            (rewind,) = one["rewinds"]
            kept = one["tokens"][: rewind["discarded_steps"][0]["start"]]
            before = tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            after = one["text"].removeprefix(before)
            assert other["target_text"] == f"{before}{rewind['discarded_text']}However,{after}"


def test_correct_compares_with_the_answer(records, pair, tmp_path, monkeypatch):
    """The same prompts again, read from a file whose answers are what the first two samples said, right or altered."""
    rows = []
    for number, record in enumerate(records[::2]):
        said = extract_answer(record["text"])
        answer = {0: {"answer": said}, 1: {"answer": said + "no"}, 2: {}}[number % 3]
        rows.append({"id": record["id"], "prompt": record["prompt"], "grader": "exact", **answer})
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    again = synthesized(pair, tmp_path, "data.source=jsonl", f"data.path={path}")
    assert [record["tokens"] for record in again] == [record["tokens"] for record in records]
    assert [record["correct"] for record in again[::2]] == [{0: True, 1: False, 2: None}[n % 3] for n in range(PROMPTS)]
    # The tiny tokenizer spells no <think>. Where the prompt ends in one, a completion has to close the thought first.
    monkeypatch.setattr(tokenizer_module, "_THOUGHT_TAGS", ("=", "@"))
    folder = tmp_path / "thinking"
    folder.mkdir()
    thinking = synthesized(pair, folder, "data.source=jsonl", f"data.path={path}", "data.count=3")
    assert [record["correct"] for record in thinking[::2]] == [False, False, None]


@pytest.fixture
def copy(written, tmp_path):
    """A finished file with its configuration, to be damaged."""
    for path in (written, written.with_name("out.jsonl.config.yaml")):
        shutil.copy(path, tmp_path)
    return tmp_path / "out.jsonl"


def test_records_of_prompts_that_had_other_tokens_are_not_mixed_with_new_ones(copy, pair):
    """As with a template that prints the date: the text of the prompt is the same, what the models read is not."""
    *lines, _ = copy.read_text().splitlines(keepends=True)
    record = json.loads(lines[4])
    lines[4] = json.dumps({**record, "prompt_tokens": [*record["prompt_tokens"], 3]}) + "\n"
    copy.write_text("".join(lines))
    with pytest.raises(UserError, match=r"out\.jsonl, line 5: .*other token ids.*strftime_now"):
        synthesize_to(copy, pair)
    assert copy.read_text() == "".join(lines)


def test_a_run_killed_twice_goes_on_to_the_same_file(written, pair, tmp_path):
    """On the 8 devices of the undisturbed one. The second time in the middle of a line, too."""
    log, chance = tmp_path / "out.jsonl", random.Random(5)
    command = [*words(pair, tmp_path, COUNT), f"output={log}"]
    half = f"{log}: an incomplete last line is removed and computed again\n"
    for lines in (chance.randint(1, 8), chance.randint(9, 24)):
        process = stop_at(command, log, lines, signal.SIGKILL, verb="synthesize", devices=8)
        assert process.returncode == -signal.SIGKILL and process.stderr in ("", half), process.stderr
        assert lines <= log.read_bytes().count(b"\n") < RECORDS
    log.write_bytes(log.read_bytes()[: -chance.randint(1, 300)])
    kept = log.read_bytes().count(b"\n")
    again = spawn("synthesize", command, devices=8)
    assert again.returncode == 0 and again.stderr == half
    assert f"resuming at record {kept + 1} of {RECORDS}\n" in again.stdout
    assert f"{log}: {RECORDS} of {RECORDS} records\n" in again.stdout
    assert log.read_bytes() == written.read_bytes()


def test_a_signal_stops_between_batches(copy, pair, monkeypatch):
    whole, batches = copy.read_bytes(), rolling._batches
    copy.write_bytes(b"".join(whole.splitlines(keepends=True)[:3]))

    def interrupted(*arguments):
        for jobs, host in batches(*arguments):
            signal.raise_signal(signal.SIGTERM)
            yield jobs, host

    with monkeypatch.context() as patch:
        patch.setattr(rolling, "_batches", interrupted)
        assert synthesize.work([*words(pair, copy.parent, COUNT), f"output={copy}"]) == STOPPED
    assert copy.read_bytes() == b"".join(whole.splitlines(keepends=True)[:8])
    synthesize_to(copy, pair)
    assert copy.read_bytes() == whole


def refuse(pair, output, *changes: str) -> str:
    """The message; nothing is touched."""
    before = {path: path.read_bytes() for path in output.parent.iterdir()}
    with pytest.raises(UserError) as caught:
        synthesize_to(output, pair, *changes)
    assert {path: path.read_bytes() for path in output.parent.iterdir()} == before
    return str(caught.value)


@pytest.mark.parametrize("broken", [b'{"id": "arith\n', b"[1]\n", b'{"id": "1", "sample": 0}\n', b"\n", b"\xff\n"])
def test_a_broken_line_is_named(broken, copy, pair):
    lines = copy.read_bytes().splitlines(keepends=True)
    copy.write_bytes(b"".join([*lines[:6], broken, *lines[7:]]))
    assert f"{copy}, line 7: not " in refuse(pair, copy)


def test_another_configuration_is_refused(copy, pair):
    said = refuse(pair, copy, "monitor.eps0=0.3", "run.seed=1", "rollout.slots=4")
    assert f"{copy} was written by another configuration (run.seed, monitor.eps0 differ)" in said
    assert "data.count" in refuse(pair, copy, "data.count=20")
    copy.with_name("out.jsonl.config.yaml").unlink()
    assert "out.jsonl.config.yaml" in refuse(pair, copy)


def test_other_prompts_are_refused(copy, pair):
    sidecar = copy.with_name("out.jsonl.config.yaml")
    config = load_config(sidecar)
    prompts = read_prompts(config)
    assert open_existing(copy, sidecar, config, prompts).done == RECORDS
    assert open_existing(copy, sidecar, config, [*prompts, prompts[0]]).total == RECORDS + 2, (
        "more of them may be asked for"
    )
    changed = [*prompts[:9], dataclasses.replace(prompts[9], prompt="1+1="), *prompts[10:]]
    with pytest.raises(UserError, match=r"out\.jsonl, line 19: .*'arithmetic-train-9', sample 0"):
        open_existing(copy, sidecar, config, changed)


def test_two_processes_do_not_write_one_file(copy):
    """Neither at the same time, nor one behind what the other has added since."""
    sidecar = copy.with_name("out.jsonl.config.yaml")
    config = load_config(sidecar)
    log = open_existing(copy, sidecar, config, read_prompts(config))
    with log.opened() as file:
        with pytest.raises(UserError, match="another process"), log.opened():
            pass
        file.write(b"more\n")
    with pytest.raises(UserError, match="another process"), log.opened():
        pass


def test_a_finished_file_is_left_alone_whatever_does_not_matter(copy, pair, capsys):
    before = copy.read_bytes()
    changes = ["rollout.batch_size=16", "rollout.slots=4", "run.name=other", "run.steps=3", "optimizer.learning_rate=1"]
    synthesize_to(copy, pair, *changes, "objective.student_loss=jsd", "mesh.data=4")
    assert copy.read_bytes() == before and f"holds all {RECORDS} records already" in capsys.readouterr().out


def test_an_output_of_other_kind_is_refused(copy, pair):
    assert "out.jsonl.all.jsonl" in refuse(pair, copy, "only_correct=true")
    copy.rename(copy.with_name("out.jsonl.all.jsonl"))
    assert "only_correct=true" in refuse(pair, copy)


def test_files_made_of_the_records(copy, pair):
    """Parquet holds the same records; of those that are not known to be right only_correct leaves none."""
    lines = [json.dumps(record | {"correct": n % 3 == 0 or None}) for n, record in enumerate(read_lines(copy))]
    for name in ("right.jsonl", "all.parquet"):
        (copy.parent / f"{name}.all.jsonl").write_text("".join(line + "\n" for line in lines))
        shutil.copy(copy.with_name("out.jsonl.config.yaml"), copy.with_name(f"{name}.config.yaml"))
    sft = copy.with_name("sft.jsonl")
    synthesize_to(copy.with_name("right.jsonl"), pair, "only_correct=true", f"sft={sft}")
    assert copy.with_name("right.jsonl").read_text().splitlines() == lines[::3]
    assert [line["messages"][1]["content"] for line in read_lines(sft)] == [
        json.loads(line)["target_text"] for line in lines[::3]
    ]
    synthesize_to(copy.with_name("all.parquet"), pair)
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = parquet.read_table(copy.with_name("all.parquet")).to_pylist()
    assert rows == [json.loads(line) for line in lines]
    assert all(faults(row, RECORD_SCHEMA) == [] for row in rows)


def test_the_schema_sees_what_is_wrong(records):
    record = next(record for record in records if record["rewinds"])
    assert set(RECORD_SCHEMA["required"]) == set(FIELDS) == RECORD
    step, rewind = record["steps"][0], record["rewinds"][0]
    chat = [{"role": "user", "content": "1+1="}]
    assert faults(record | {"prompt": chat, "step": 1}, RECORD_SCHEMA) == []
    for wrong in (
        *(
            {"id": 1},
            {"sample": -1},
            {"sample": True},
            {"tokens": [0.5]},
            {"prompt": ""},
            {"prompt": [{"role": "user"}]},
        ),
        *({"finish_reason": "running"}, {"sources": ["prompt"]}, {"correct": "yes"}, {"more": 1}, {"rewinds": {}}),
        *({"steps": [step | {"value": "1.5"}]}, {"steps": [step | {"stray": None}]}, {"steps": [step | {"length": 1}]}),
        *({"rewinds": [rewind | {"root_step": "0"}]}, {"rewinds": [rewind | {"discarded_steps": []}]}),
    ):
        assert len(faults(record | wrong, RECORD_SCHEMA)) >= 1, wrong
    for name in RECORD:
        assert faults({key: value for key, value in record.items() if key != name}, RECORD_SCHEMA) == [
            f"$: {name!r} is a required property"
        ]
