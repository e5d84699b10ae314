"""The records of `synthesize`: their fields, what holds between them, and that the batch leaves no trace in them."""

import json

import pytest

from motab_jax import synthesize
from motab_jax.data.answers import extract_answer
from tests.verbs.helpers import RECORD, check_record, read_lines, tokenizer_of, words


def synthesized(pair, folder, *changes: str) -> list[dict]:
    """The records of 20 prompts, twice each."""
    output = folder / "out.jsonl"
    assert synthesize.work([*words(pair, folder, "data.count=20", *changes), f"output={output}"]) in (0, None)
    return read_lines(output)


@pytest.fixture(scope="module")
def records(pair, tmp_path_factory):
    """Batches of 16: the last one is not full."""
    return synthesized(pair, tmp_path_factory.mktemp("records"), "rollout.batch_size=16")


def test_a_record_for_every_prompt_and_sample(records, pair):
    assert len(records) == 40 and [record["sample"] for record in records] == [0, 1] * 20
    assert len({record["id"] for record in records}) == 20
    for record in records:
        assert set(record) == RECORD
        assert record["prompt_tokens"] == tokenizer_of(pair / "teacher").encode(record["prompt"])
        check_record(record, tokenizer_of(pair / "teacher"))


def test_the_records_show_backtracking(records):
    rewound = [record for record in records if record["rewinds"]]
    assert len(rewound) >= 10
    assert {source for record in rewound for source in record["sources"]} >= {"teacher"}
    assert {record["finish_reason"] for record in records} == {"stop", "length"}


def test_samples_of_a_prompt_differ(records):
    assert any(one["tokens"] != other["tokens"] for one, other in zip(records[::2], records[1::2], strict=True))


def real_numbers(record: dict) -> list[float]:
    """Values, entropies and boundaries, those of discarded steps included; taken out of the record."""
    steps = record["steps"] + [step for rewind in record["rewinds"] for step in rewind["discarded_steps"]]
    return [step.pop(name) for step in steps for name in ("value", "entropy", "boundary")]


def test_neither_batch_nor_segment_changes_a_trajectory(records, pair, tmp_path):
    others = synthesized(pair, tmp_path, "rollout.batch_size=8", "rollout.segment_tokens=5")
    for one, other in zip(json.loads(json.dumps(records)), others, strict=True):
        assert real_numbers(one) == pytest.approx(real_numbers(other), abs=1e-5)
        assert one == other


def test_the_stitched_target_keeps_what_was_discarded(records, pair, tmp_path):
    tokenizer = tokenizer_of(pair / "teacher")
    stitched = synthesized(pair, tmp_path, "rollout.batch_size=16", "objective.target=stitched")
    for one, other in zip(records, stitched, strict=True):
        assert one | {"target_text": ""} == other | {"target_text": ""}
        if one["rewinds"]:
            (rewind,) = one["rewinds"]
            kept = one["tokens"][: rewind["discarded_steps"][0]["start"]]
            before = tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            after = one["text"].removeprefix(before)
            assert other["target_text"] == f"{before}{rewind['discarded_text']}However,{after}"


def test_correct_compares_with_the_answer(records, pair, tmp_path):
    """The same prompts again, read from a file whose answers are what the first two samples said, right or altered."""
    rows = []
    for number, record in enumerate(records[::2]):
        said = extract_answer(record["text"])
        answer = {0: {"answer": said}, 1: {"answer": said + "no"}, 2: {}}[number % 3]
        rows.append({"id": record["id"], "prompt": record["prompt"], "grader": "exact", **answer})
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    again = synthesized(pair, tmp_path, "rollout.batch_size=16", "data.source=jsonl", f"data.path={path}")
    assert [record["tokens"] for record in again] == [record["tokens"] for record in records]
    assert [record["correct"] for record in again[::2]] == [{0: True, 1: False, 2: None}[n % 3] for n in range(20)]
