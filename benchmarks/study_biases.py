"""Both exposure biases, measured on the shipped chains.

The student's: how often a step goes wrong, by its number, and by whether an earlier one did. The teacher's: how
uncertain it is, and how often it still comes to the right answer, after so many flawed steps. A step is right if it
takes the next term and its sum is right for the total that it starts from; it is good if that total is the true one.
"""

import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from study_figures import draw

from motab_jax.data import arithmetic
from motab_jax.data.steps import compile_delimiter
from motab_jax.data.tokenizer import load_tokenizer, token_bytes
from motab_jax.models.pretrained import load_pretrained
from motab_jax.models.transformer import Model, forward
from motab_jax.quickstart import TEACHER
from motab_jax.rollout import Prompts, RolloutConfig, rollout
from motab_jax.rollout.opinion import entropy_of

COLUMNS, NEW_TOKENS = 128, 96
_LINE = re.compile(r"(\d+)([+-]\d+)=(\d+)")


class StepErrors(NamedTuple):
    """Counts by step number, from 0."""

    good_before: np.ndarray  # i64[K]; steps that start from a true total
    first_errors: np.ndarray  # i64[K]; of them wrong
    flawed_before: np.ndarray  # i64[K]; steps after an error
    further_errors: np.ndarray  # i64[K]; of them wrong by their own total


def step_errors(problems: Sequence[arithmetic.Problem], texts: Sequence[str]) -> StepErrors:
    """Compare completions line by line with their problems. A line that is missing or unreadable is wrong."""
    counts = np.zeros((4, max(len(problem.terms) for problem in problems)), np.int64)
    for problem, text in zip(problems, texts, strict=True):
        lines, total, flawed = text.split("\n"), problem.first, False
        for number, term in enumerate(problem.terms):
            found = _LINE.fullmatch(lines[number]) if number < len(lines) else None
            right = found is not None and _follows(found, total, term)
            counts[2 * flawed, number] += 1
            counts[2 * flawed + 1, number] += not right
            if found is None:
                break
            total, flawed = int(found[3]), flawed or not right
    return StepErrors(*counts)


def _follows(line: re.Match[str], total: int, term: int) -> bool:
    before, change, after = (int(part) for part in line.groups())
    return (before, change, after) == (total, term, total + term)


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


def write(out: Path, texts: dict[str, list[tuple[arithmetic.Problem, str]]], count: int) -> dict[str, Any]:
    """Figures of both biases; draws study-exposure.svg and study-reversed.svg. texts: setting -> (problem, written)."""
    errors = {name: step_errors(*zip(*pairs, strict=True)) for name, pairs in texts.items()}
    lines = {name: _rates(found) for name, found in errors.items()}
    labels = ("step", "share of steps that go wrong, of those from a true total")
    draw(out / "study-exposure.svg", lines, "step", "first", labels)
    teacher, tokenizer = Model(*load_pretrained(TEACHER)), load_tokenizer(TEACHER)
    seen = views(teacher, tokenizer, arithmetic, flawed=range(4), count=count, lines=3)
    columns = dict(zip(View._fields, np.array(seen).T, strict=True))
    draw(out / "study-reversed.svg", {"teacher": columns}, "flawed", "right", ("flawed steps of 3", "right answers"))
    return {
        "exposure": {name: {key: value.tolist() for key, value in line.items()} for name, line in lines.items()},
        "reversed_exposure": [view._asdict() for view in seen],
    }


def _rates(errors: StepErrors) -> dict[str, np.ndarray]:
    """By step from 1: the share that goes wrong, of those from a true total and of those after an error."""

    def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
        return part / np.maximum(whole, 1)

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
        temperature=1.0, top_p=1.0, monitored=False,
    )  # fmt: skip
    prompts = Prompts(jnp.asarray(tokens), length, jnp.arange(len(texts), dtype=jnp.int32))
    log = jax.device_get(_rollout(teacher, None, prompts, jax.random.key(0), config))
    used = [log.tokens[row, : log.length[row]].tolist() for row in range(len(texts))]
    mean = float(jnp.mean(entropy_of(logits[:, : len(tokenizer)])))
    return mean, [tokenizer.decode(ids, skip_special_tokens=True) for ids in used]


_rollout = jax.jit(rollout)
