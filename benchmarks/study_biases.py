"""Both exposure biases, measured on the shipped chains.

The student's: how often a step goes wrong, by its number, and by whether an earlier one did. The teacher's: how
uncertain it is, and how often it still comes to the right answer, after so many flawed steps. A step is right if it
follows from the state before it, true or not: a sum takes the next term and is right for the total that it starts
from; a hop goes where the key before it leads.
"""

import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from study_figures import draw

from motab_jax.data.prompts import TASKS
from motab_jax.data.steps import compile_delimiter
from motab_jax.data.tasks import arithmetic, pointers
from motab_jax.data.tokenizer import load_tokenizer, token_bytes
from motab_jax.models.hf.pretrained import load_pretrained
from motab_jax.models.transformer import Model, forward
from motab_jax.quickstart import TEACHER
from motab_jax.rollout import MonitorSpec, Prompts, RolloutConfig, SamplingSpec, rollout
from motab_jax.rollout.teacher_scores import entropy_of

COLUMNS, NEW_TOKENS = 128, 96
_SUM, _HOP = re.compile(r"(\d+)([+-]\d+)=(\d+)"), re.compile(r"([A-Za-z])(\d)")


class StepErrors(NamedTuple):
    """Counts by step number, from 0."""

    good_before: np.ndarray  # i64[K]; steps with no error before
    first_errors: np.ndarray  # i64[K]; of them wrong
    flawed_before: np.ndarray  # i64[K]; steps after an error
    further_errors: np.ndarray  # i64[K]; of them wrong by the state that they start from


class Chain(NamedTuple):
    """How a task's chain is read: its number of steps, its first state, and a line as (it follows, state after it)."""

    steps: Callable[[Any], int]
    start: Callable[[Any], Any]
    read: Callable[[Any, int, Any, str], tuple[bool, Any] | None]  # problem, number, state before, line


def step_errors(chain: Chain, problems: Sequence[Any], texts: Sequence[str]) -> StepErrors:
    """Compare completions line by line with their problems. A line that is missing or unreadable is wrong."""
    counts = np.zeros((4, max(chain.steps(problem) for problem in problems)), np.int64)
    for problem, text in zip(problems, texts, strict=True):
        lines, state, flawed = text.split("\n"), chain.start(problem), False
        for number in range(chain.steps(problem)):
            found = chain.read(problem, number, state, lines[number]) if number < len(lines) else None
            counts[2 * flawed, number] += 1
            counts[2 * flawed + 1, number] += found is None or not found[0]
            if found is None:
                break
            right, state = found
            flawed = flawed or not right
    return StepErrors(*counts)


def _read_sum(problem: arithmetic.Problem, number: int, total: int, line: str) -> tuple[bool, int] | None:
    found = _SUM.fullmatch(line)
    if found is None:
        return None
    before, change, after = (int(part) for part in found.groups())
    term = problem.terms[number]
    return (before, change, after) == (total, term, total + term), after


def _read_hop(problem: pointers.Problem, number: int, key: str, line: str) -> tuple[bool, str] | None:
    found = _HOP.fullmatch(line)
    if found is None:
        return None
    right = (found[1], int(found[2])) == (dict(problem.arrows).get(key), problem.hops - number - 1)
    return right, found[1]


CHAINS = {
    "arithmetic": Chain(lambda problem: len(problem.terms), lambda problem: problem.first, _read_sum),
    "pointers": Chain(lambda problem: problem.hops, lambda problem: problem.start, _read_hop),
}


class View(NamedTuple):
    """The teacher after a prefix, means over problems."""

    flawed: int  # steps of the prefix that are wrong
    entropy: float  # nats, of its next token (MOTAB, eq. 6)
    right: float  # share of its own continuations that come to the right answer


def views(teacher: Model, tokenizer: Any, task: Any, *, flawed: Sequence[int], count: int, lines: int) -> list[View]:
    """The teacher's view of `count` held-out problems of a task (a module with `problems` and `corrupt`).

    Each prefix has `lines` lines, the last so many of them flawed; the teacher samples on from there at temperature 1.
    """
    room = [
        p for p in task.problems(4 * count, seed=11, split="held_out") if len(task.solution(p).split("\n")) > lines + 1
    ]
    found = []
    for steps in flawed:
        rng = random.Random(f"flawed/{steps}")
        prefixes = [task.corrupt(problem, steps, rng, lines=lines) for problem in room[:count]]
        texts = [problem.prompt + prefix for problem, prefix in zip(room, prefixes, strict=False)]
        entropy, continued = _go_on(teacher, tokenizer, texts)
        ends = [arithmetic.final_answer(prefix + text) for prefix, text in zip(prefixes, continued, strict=True)]
        right = [end == problem.answer for end, problem in zip(ends, room, strict=False)]
        found.append(View(steps, entropy, float(np.mean(right))))
    return found


Written = dict[str, list[tuple[Any, str]]]  # setting -> (problem, what its student wrote)


def write(out: Path, written: dict[str, Written], count: int) -> dict[str, Any]:
    """Figures of both biases by task; draws study-exposure-TASK.svg and study-entropy.svg, study-recovery.svg."""
    errors = {
        task: {name: step_errors(CHAINS[task], *zip(*pairs, strict=True)) for name, pairs in found.items()}
        for task, found in written.items()
    }
    for task, found in errors.items():
        labels = ("step", "wrong, of those with none wrong before")
        lines = {name: _rates(counts) for name, counts in found.items()}
        draw(out / f"study-exposure-{task}.svg", lines, "step", "first", labels)
    teacher, tokenizer = Model(*load_pretrained(TEACHER)), load_tokenizer(TEACHER)
    seen = {task: views(teacher, tokenizer, TASKS[task], flawed=range(4), count=count, lines=3) for task in written}
    columns = {task: dict(zip(View._fields, np.array(found).T, strict=True)) for task, found in seen.items()}
    draw(out / "study-entropy.svg", columns, "flawed", "entropy", ("flawed steps of 3", "teacher's entropy, nats"))
    draw(out / "study-recovery.svg", columns, "flawed", "right", ("flawed steps of 3", "teacher's right answers"))
    return {
        "exposure": {
            task: {name: _figures(counts) for name, counts in found.items()} for task, found in errors.items()
        },
        "reversed_exposure": {task: [view._asdict() for view in found] for task, found in seen.items()},
    }


def _figures(errors: StepErrors) -> dict[str, Any]:
    """The rates by step as lists, and over all steps; None where there was no step to count."""
    overall = _rates(StepErrors(*(counts.sum(keepdims=True) for counts in errors)))
    found = {key: [None if np.isnan(x) else x for x in value.tolist()] for key, value in _rates(errors).items()}
    return found | {
        f"{key}_all": None if np.isnan(overall[key][0]) else overall[key][0] for key in ("first", "further")
    }


def _rates(errors: StepErrors) -> dict[str, np.ndarray]:
    """By step from 1: the share that goes wrong, of those with no error before and of those after one."""

    def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
        return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)

    return {
        "step": np.arange(1, len(errors.good_before) + 1),
        "first": share(errors.first_errors, errors.good_before),
        "further": share(errors.further_errors, errors.flawed_before),
    }


def _go_on(teacher: Model, tokenizer: Any, texts: Sequence[str]) -> tuple[float, list[str]]:
    """The mean entropy of what comes next, and a sampled continuation of each text."""
    tokens, lengths = np.zeros((len(texts), COLUMNS), np.int32), []
    for row, text in enumerate(texts):
        ids = tokenizer.encode(text)
        tokens[row, COLUMNS - len(ids) :] = ids
        lengths.append(len(ids))
    length = jnp.asarray(lengths, jnp.int32)
    positions = jnp.maximum(jnp.arange(COLUMNS)[None] - (COLUMNS - length[:, None]), -1)
    logits = jax.jit(forward, static_argnums=1)(teacher.params, teacher.config, jnp.asarray(tokens), positions)[:, -1]
    config = RolloutConfig(
        compile_delimiter("\n", token_bytes(tokenizer)), stop_ids=jnp.asarray([tokenizer.eos_token_id]),
        eps0=jnp.float32(0.0), theta=jnp.float32(0.0), vocab_size=len(tokenizer), max_new_tokens=NEW_TOKENS,
        sampling=SamplingSpec(1.0, 0, 1.0), monitor=MonitorSpec(enabled=False),
    )  # fmt: skip
    prompts = Prompts(jnp.asarray(tokens), length, jnp.arange(len(texts), dtype=jnp.int32))
    log = jax.device_get(_rollout(teacher, None, prompts, jax.random.key(0), config))
    used = [log.tokens[row, : log.length[row]].tolist() for row in range(len(texts))]
    mean = float(jnp.mean(entropy_of(logits[:, : len(tokenizer)])))
    return mean, [tokenizer.decode(ids, skip_special_tokens=True) for ids in used]


_rollout = jax.jit(rollout)
