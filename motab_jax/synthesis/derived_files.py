"""Files derived from a complete record log: correct records only, Parquet, chats for SFT, preference pairs.

Each file is written as a whole, from the records alone, so it always agrees with them. SFT and preference lines have
the field names that TRL's trainers read. Left out: training on them.
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
    """(line, record) of all records, or of those that are known to be correct."""
    return (pair for pair in read_records(log) if not only_correct or pair[1]["correct"] is True)


def chat(record: Record) -> Record:
    """An SFT line: the prompt's messages, then the target as the assistant's message."""
    prompt = record["prompt"]
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return {"messages": [*messages, {"role": "assistant", "content": record["target_text"]}]}


def preference_pairs(record: Record, decode: Decode, *, templated: bool) -> Iterator[Record]:
    """One preference line for each rewind of a record.

    `prompt` ends at the last safe state, `rejected` is what was discarded there, and `chosen` the teacher's first steps
    from there: as many as were discarded, or fewer if it generated fewer. All three are plain text. Left out: rewinds
    after which the teacher generated no step, or the same text.

    Args:
      record: of a trajectory.
      decode: token ids to text; with `special=True` special tokens are included.
      templated: the models' prompt was made by a chat template; `prompt` is then that text, with special tokens.
    """
    tokens, steps = record["tokens"], record["steps"]
    prompt = decode(record["prompt_tokens"], special=True) if templated else record["prompt"]
    ends = [*(rewind["root_step"] for rewind in record["rewinds"][1:]), len(steps)]
    for rewind, end in zip(record["rewinds"], ends, strict=False):
        root = rewind["root_step"]
        span = steps[root : min(end, root + len(rewind["discarded_steps"]))]
        teacher_steps = list(itertools.takewhile(lambda step: step["source"] == "teacher", span))
        if not teacher_steps:
            continue
        begin = teacher_steps[0]["start"]
        chosen = decode(tokens[begin : teacher_steps[-1]["end"]])
        if chosen != rewind["discarded_text"]:
            safe_state = prompt + decode(tokens[:begin])
            yield {"prompt": safe_state, "chosen": chosen, "rejected": rewind["discarded_text"]}


def to_line(value: Any) -> bytes:
    """A JSON line; ValueError for a number that isn't finite."""
    return (json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_lines(path: Path, lines: Iterable[bytes]) -> int:
    """Write a file; an old one stays until the new one is complete. Returns the number of lines."""
    count = 0
    with _replacing(path) as partial, partial.open("wb") as file:
        for line in lines:
            file.write(line)
            count += 1
    return count


def prompt_type(prompts: Sequence[Prompt]):
    """The Parquet type of the prompts.

    Raises:
      UserError: pyarrow is missing, or some prompts are text and others messages.
    """
    try:
        import pyarrow
    except ImportError:
        raise UserError("output=FILE.parquet needs the package pyarrow: pip install '.[data]'") from None
    try:
        return pyarrow.array([prompt.prompt for prompt in prompts]).type
    except pyarrow.ArrowException:
        raise UserError(
            "output=FILE.parquet: the prompts do not fit one column, as all text or all messages do; write FILE.jsonl"
        ) from None


def write_parquet(path: Path, records: Iterable[Record], prompts: Sequence[Prompt]) -> int:
    """Write the records as a Parquet file; an old one stays until it is complete. Returns their number."""
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
    """The Parquet schema of a record; step values, entropies and boundaries are float32, as in the trajectory."""
    import pyarrow as pa

    real, tokens = pa.float32(), pa.list_(pa.int32())
    span = {"start": pa.int32(), "end": pa.int32(), "source": pa.string()}
    step = pa.struct(span | {"value": real, "entropy": real, "boundary": real, "stray": pa.bool_()})
    entries = {"breach_step": pa.int32(), "root_step": pa.int32()}
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
            "rewinds": pa.list_(pa.struct(entries | discarded)),
            "finish_reason": pa.string(),
            "correct": pa.bool_(),
        }
    )


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A path to write to; it is renamed to `path` if no error is raised."""
    partial = path.with_name(path.name + ".partial")
    yield partial
    os.replace(partial, path)
