"""What is made of a finished file of records: the right ones alone, Parquet, chats for SFT, pairs for preferences.

Each file is made whole, from the records alone, so it always agrees with them. SFT and preference lines have the
names that TRL's trainers read. Left out: training on them.
"""

import contextlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from motab_jax.config import UserError
from motab_jax.data.records import Prompt
from motab_jax.synthesis.record_log import read_records

Record = dict[str, Any]
Decode = Callable[..., str]  # data.tokenizer.decode, given its tokenizer
GROUP = 64  # records of a Parquet row group


def wanted_records(log: Path, only_correct: bool) -> Iterator[tuple[bytes, Record]]:
    """(line, record) of the records wanted: all, or those that are known to be right."""
    return (found for found in read_records(log) if not only_correct or found[1]["correct"] is True)


def chat(record: Record) -> Record:
    """An SFT line: the prompt's messages and the target as the assistant's."""
    prompt = record["prompt"]
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return {"messages": [*messages, {"role": "assistant", "content": record["target_text"]}]}


def preference_pairs(record: Record, decode: Decode, *, templated: bool) -> Iterator[Record]:
    """One line a rewind: `prompt` up to the last safe state, `rejected` what was discarded there, `chosen` instead.

    Chosen are the teacher's first steps from there, as many as were discarded or as it wrote. All three are plain text:
    a prompt that the models read through a chat template (`templated`) is that text, special tokens included. A rewind
    after which the teacher wrote no step, or the same text again, says nothing and is left out.
    """
    tokens, steps = record["tokens"], record["steps"]
    prompt = decode(record["prompt_tokens"], special=True) if templated else record["prompt"]
    ends = [*(rewind["root_step"] for rewind in record["rewinds"][1:]), len(steps)]
    for rewind, end in zip(record["rewinds"], ends, strict=False):
        root = rewind["root_step"]
        span = steps[root : min(end, root + len(rewind["discarded_steps"]))]
        taught = list(itertools.takewhile(lambda step: step["source"] == "teacher", span))
        if not taught:
            continue
        begin = taught[0]["start"]
        better = decode(tokens[begin : taught[-1]["end"]])
        if better != rewind["discarded_text"]:
            safe = prompt + decode(tokens[:begin])
            yield {"prompt": safe, "chosen": better, "rejected": rewind["discarded_text"]}


def to_line(value: Any) -> bytes:
    """A JSON line; ValueError for a number that isn't finite."""
    return (json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_lines(path: Path, lines: Iterable[bytes]) -> int:
    """Write a file whole: the old one stays until the new one is complete. Returns the number of lines."""
    count = 0
    with _replacing(path) as partial, partial.open("wb") as file:
        for line in lines:
            file.write(line)
            count += 1
    return count


def prompt_type(prompts: Sequence[Prompt]):
    """The Parquet type of the prompts. UserError where pyarrow is missing, or some are text and others messages."""
    try:
        import pyarrow
    except ImportError:
        raise UserError("output=FILE.parquet needs the package pyarrow: pip install motab_jax[data]") from None
    try:
        return pyarrow.array([prompt.prompt for prompt in prompts]).type
    except pyarrow.ArrowException:
        raise UserError(
            "output=FILE.parquet: the prompts do not fit one column, as all text or all messages do; write FILE.jsonl"
        ) from None


def write_parquet(path: Path, records: Iterable[Record], prompts: Sequence[Prompt]) -> int:
    """Write the records as a Parquet file, whole; returns their number."""
    import pyarrow
    import pyarrow.parquet

    schema, count = _columns(prompt_type(prompts)), 0
    with _replacing(path) as partial, pyarrow.parquet.ParquetWriter(partial, schema) as file:
        rest = iter(records)
        while group := list(itertools.islice(rest, GROUP)):
            file.write_table(pyarrow.Table.from_pylist(group, schema=schema))
            count += len(group)
    return count


def _columns(prompt: Any):
    """The Parquet schema of a record; numbers that were float32 are so again."""
    import pyarrow as pa

    real, tokens = pa.float32(), pa.list_(pa.int32())
    places = {"start": pa.int32(), "end": pa.int32(), "source": pa.string()}
    step = pa.struct(places | {"value": real, "entropy": real, "boundary": real, "stray": pa.bool_()})
    numbers = {"breach_step": pa.int32(), "root_step": pa.int32()}
    discarded = {"discarded_tokens": tokens, "discarded_text": pa.string(), "discarded_steps": pa.list_(step)}
    return pa.schema(
        {
            "id": pa.string(),
            "sample": pa.int32(),
            "prompt": prompt,
            "prompt_tokens": tokens,
            "text": pa.string(),
            "tokens": tokens,
            "sources": pa.list_(pa.string()),
            "target_text": pa.string(),
            "steps": pa.list_(step),
            "rewinds": pa.list_(pa.struct(numbers | discarded)),
            "finish_reason": pa.string(),
            "correct": pa.bool_(),
        }
    )


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A path to write to, which becomes `path` when all went well."""
    partial = path.with_name(path.name + ".partial")
    yield partial
    os.replace(partial, path)
