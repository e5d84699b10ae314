"""Prompts: where they come from, their token ids, and the endless shuffled order that training takes them in.

Sources: `arithmetic` and `pointers` (generated), `jsonl` (gzipped or not) and `parquet` (a file at data.path),
`hub:<id>` (a Hugging Face data set; data.path may name its configuration), `reasoning_gym:<task>` (generated). What a
record needs is in `records.py`.
Left out: streaming. All prompts of a run are read, checked and tokenised before it starts.
"""

import dataclasses
import gzip
import itertools
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from motab_jax.config import UserError
from motab_jax.data.records import FIELDS, LETTERS, Prompt, RecordRules, instructed, read_record
from motab_jax.data.tasks import arithmetic, pointers
from motab_jax.data.templates import PromptForm, encode_prompts
from motab_jax.runtime.staging import local_copy

TASKS = {"arithmetic": arithmetic, "pointers": pointers}
POOL = {"train": 20_000, "held_out": 1_000}  # prompts of a generated source where no count is given
TASK_POOL = {"train": 2_000, "held_out": 500}  # reasoning-gym tasks are slower to generate
TASK_HELD_OUT_SHARE = 4
# reasoning-gym seeds question i with seed + i: with seeds this far apart, questions are equal by chance only.
TASK_SEED_STRIDE = 100_000_000


class PromptSource(RecordRules, Protocol):
    """The keys that say where prompts come from: of `data`, or of `eval` where it has a source of its own."""

    @property
    def source(self) -> str | None:
        """Where the prompts come from: the name of a task, of a kind of file, of a library."""
        ...

    @property
    def path(self) -> str | None:
        """The file, folder or hub id."""
        ...

    @property
    def split(self) -> str:
        """The split that is read."""
        ...

    @property
    def instruction(self) -> str | None:
        """The text that is appended to each prompt."""
        ...


def has_held_out(source: str) -> bool:
    """Whether a source makes its own held-out split, so that a run needs no separate evaluation source."""
    return source in TASKS or source.startswith("reasoning_gym:")


def load_prompts(data: PromptSource, *, split: str, count: int | None, seed: int) -> list[Prompt]:
    """Read or generate prompts, each with the section's instruction.

    Args:
      data: the section.
      split: `train` or `held_out`, of a generated source; the two share no prompt, whatever the seed. A file is one
          split, the one that its section names; a hub data set is read from the split `data.split`.
      count: the first so many; None for all of a file, and for `POOL` of a generated source.
      seed: of generated sources.

    Raises:
      UserError: for anything missing, broken or empty, and for held-out prompts of a training file.
    """
    prompts = _load(data, split, count, seed)
    return [dataclasses.replace(prompt, prompt=instructed(prompt.prompt, data.instruction)) for prompt in prompts]


def _load(data: PromptSource, split: str, count: int | None, seed: int) -> list[Prompt]:
    source = data.source or ""
    kind, _, name = source.partition(":")
    if has_held_out(source):
        if split not in POOL:
            raise UserError(f"split '{split}': {source} has the splits {' and '.join(POOL)}")
        return _shipped(source, split, count, seed) if source in TASKS else _tasks(name, split, count, seed)
    if kind not in ("jsonl", "parquet", "hub") or (kind == "hub") != bool(name):
        known = "arithmetic, pointers, jsonl, parquet, hub:<id> or reasoning_gym:<task>[,<task>...]"
        raise UserError(f"data.source = '{source}' is not a source; it is {known}")
    if split == "held_out" and data.split == "train":
        raise UserError(f"{source} has no held-out prompts of its own; set eval.source and eval.path")
    if unknown := sorted(set(data.fields) - set(FIELDS)):
        raise UserError(f"data.fields has the unknown key '{unknown[0]}'; it renames {', '.join(FIELDS)}")
    if len(data.wrong_answers) >= len(LETTERS):
        raise UserError(f"wrong_answers names {len(data.wrong_answers)} fields; the most is {len(LETTERS) - 1}")
    if kind == "hub":
        records, origin = _hub(name, data), source
    else:
        file = _existing_file(data.path, kind)
        records, origin = (_jsonl if kind == "jsonl" else _parquet)(file), str(file)
    prompts = [read_record(record, data, location) for location, record in itertools.islice(records, count)]
    if not prompts:
        raise UserError(f"{origin}: the data set is empty")
    return prompts


def encode_all(
    prompts: list[Prompt], tokenizer: Any, form: PromptForm, *, max_prompt_tokens: int, path: str | Path | None
) -> list[list[int]]:
    """Token ids of every prompt.

    Args:
      prompts: the prompts, texts or chats.
      tokenizer: of transformers.
      form: how they become text.
      max_prompt_tokens: the most that a prompt may have.
      path: the data file, for errors.

    Raises:
      UserError: naming the first prompt that can't be encoded, or else the first that is too long.
    """
    names = [f"{path}: prompt '{prompt.id}'" if path else f"prompt '{prompt.id}'" for prompt in prompts]
    encoded = encode_prompts(tokenizer, [prompt.prompt for prompt in prompts], form, names)
    for name, ids in zip(names, encoded, strict=True):
        if len(ids) > max_prompt_tokens:
            raise UserError(
                f"{name} has {len(ids)} tokens, more than data.max_prompt_tokens={max_prompt_tokens}; "
                f"raise data.max_prompt_tokens to at least {len(ids)} or drop the prompt"
            )
    return encoded


class PromptStream:
    """Endless, shuffled, resumable batches of prompt indices 0..num_prompts-1; every epoch has a new order.

    The order depends on the seed alone, not on the batch size. A batch may span two epochs.
    """

    def __init__(self, num_prompts: int, batch_size: int, seed: int):
        import grain

        if num_prompts < 1 or batch_size < 1:
            raise ValueError(f"a stream needs prompts and a batch size, got {num_prompts} and {batch_size}")
        self._num_prompts, self._batch_size, self._seed = num_prompts, batch_size, seed
        # Grain maps position -> prompt without state of its own, so one integer resumes the stream exactly.
        self._order = grain.MapDataset.range(num_prompts).seed(seed).shuffle().repeat()
        self._position = 0

    @property
    def epoch(self) -> int:
        """Whole passes over the prompts so far."""
        return self._position // self._num_prompts

    def __iter__(self) -> Iterator[list[int]]:
        return self

    def __next__(self) -> list[int]:
        start = self._position
        self._position += self._batch_size
        return [int(np.asarray(self._order[i])) for i in range(start, self._position)]

    def get_state(self) -> dict[str, int]:
        """The state as integers, for JSON."""
        return {"position": self._position, "num_prompts": self._num_prompts, "seed": self._seed}

    def set_state(self, state: dict[str, int]) -> None:
        """Continue from a saved state.

        Raises:
          UserError: the number of prompts or the seed differs from the saved one.
        """
        for key, now, name in (
            ("num_prompts", self._num_prompts, "number of prompts"),
            ("seed", self._seed, "shuffle seed"),
        ):
            if state[key] != now:
                raise UserError(
                    f"the run was saved with another {name} ({state[key]}, now {now}); "
                    "restore the data it was started with, or start a new run"
                )
        self._position = int(state["position"])


def _shipped(source: str, split: str, count: int | None, seed: int) -> list[Prompt]:
    task = TASKS[source]
    return [
        Prompt(f"{source}-{split}-{n}", p.prompt, p.answer, "arithmetic", completion=task.solution(p))
        for n, p in enumerate(task.problems(count or POOL[split], seed=seed, split=split))
    ]


def _tasks(names: str, split: str, count: int | None, seed: int) -> list[Prompt]:
    """Prompts of comma-separated reasoning-gym tasks, one of each in rotation, `count` in all."""
    tasks = names.split(",")
    share = None if count is None else -(-count // len(tasks))
    rounds = itertools.zip_longest(*(_reasoning_gym(task.strip(), split, share, seed) for task in tasks))
    return [prompt for prompt in itertools.chain.from_iterable(rounds) if prompt is not None][:count]


def _reasoning_gym(task: str, split: str, count: int | None, seed: int) -> list[Prompt]:
    try:
        import reasoning_gym
    except ImportError:
        raise UserError("data.source=reasoning_gym needs the package reasoning-gym: pip install '.[data]'") from None
    wanted = count or TASK_POOL[split]
    size = 10 * TASK_HELD_OUT_SHARE * wanted + 200  # the most that are searched; an item is made when it is read
    task_seed = 2 * seed * TASK_SEED_STRIDE + (TASK_SEED_STRIDE if split == "held_out" else 0)
    try:
        items = reasoning_gym.create_dataset(task, seed=task_seed, size=size)
    except (ValueError, TypeError, AssertionError) as error:
        raise UserError(f"data.source = 'reasoning_gym:{task}': {error}") from None
    prompts: dict[str, Prompt] = {}
    for index in range(size):
        if len(prompts) == wanted:
            break
        entry = items[index]
        question, answer = entry["question"], entry["answer"]
        # The text alone determines the split, so no question is in both, whatever the seeds and counts.
        if arithmetic.split_of(question, share=TASK_HELD_OUT_SHARE) == split and question not in prompts:
            extra = {"task": task, "seed": task_seed, "size": size, "index": index, "entry": entry}
            answer = None if answer is None else str(answer)
            prompts[question] = Prompt(f"{task}-{split}-{index}", question, answer, "reasoning_gym", extra)
    if not prompts:
        raise UserError(f"reasoning_gym:{task} has too few different questions for a '{split}' split")
    return list(prompts.values())


def _existing_file(path: str | None, kind: str) -> Path:
    if not path:
        raise UserError(f"data.source={kind} needs data.path, the file to read")
    file = local_copy(path)
    if not file.is_file():
        raise UserError(f"{path}: no such file; data.path (or eval.path) names a {kind} file")
    return file


def _jsonl(path: Path) -> Iterator[tuple[str, dict]]:
    """(location, record) of every line that isn't blank; the location is the file and the line, counted from 1.

    A file that begins as gzip's do is decompressed on the way, whatever its name.
    """
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            lines = gzip.GzipFile(fileobj=file) if packed else file
            for number, line in enumerate(lines, 1):
                text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if text.strip():
                    yield f"{path}, line {number}", _parsed(text, f"{path}, line {number}")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: not a complete gzip file: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}") from None


def _parsed(line: bytes, location: str) -> Any:
    try:
        return json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{location}: not valid JSON: {error}") from None


def _parquet(path: Path) -> Iterator[tuple[str, dict]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError("data.source=parquet needs the package pyarrow: pip install '.[data]'") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            rows = itertools.chain.from_iterable(batch.to_pylist() for batch in file.iter_batches(1024))
            for number, record in enumerate(rows, 1):
                yield f"{path}, row {number}", record
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable parquet file: {str(error).splitlines()[0]}") from None


def _hub(name: str, data: PromptSource) -> Iterable[tuple[str, dict]]:
    try:
        import datasets
    except ImportError:
        raise UserError("data.source=hub:<id> needs the package datasets: pip install '.[data]'") from None
    try:
        records = datasets.load_dataset(name, data.path, split=data.split)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"data.source = 'hub:{name}', split '{data.split}': could not be loaded: {reason}") from None
    # Columns that aren't needed, such as solutions, can be gigabytes.
    named = (*FIELDS, "grader", *data.fields.values(), *data.wrong_answers)
    wanted = {*named, *(name.partition(".")[0] for name in named)}  # a.b is in the column a
    if columns := [column for column in records.column_names if column in wanted]:
        records = records.select_columns(columns)
    return ((f"hub:{name}, row {number}", dict(record)) for number, record in enumerate(records, 1))
