"""A record of a data set, checked and read as a prompt.

A record needs a prompt, a string or a list of chat messages, and may have `id`, `answer`, `completion` and `grader`;
`fields` says what the first four are called. A multiple choice gets its choices listed behind its question.
Left out: where records come from (`prompts.py`).
"""

import random
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from motab_jax.config import UserError
from motab_jax.data.extract import last_boxed

GRADERS = ("arithmetic", "math", "reasoning_gym", "exact", "choice", "none")
OF_RECORDS = ("math", "exact", "choice", "arithmetic", "none")
FIELDS = ("prompt", "answer", "id", "completion")
LETTERS = "ABCDEFGH"


@dataclass(frozen=True)
class Prompt:
    """One problem. `answer` is None where none is known; then `grader` is `none`, or a task's own scorer."""

    id: str
    prompt: str | list[dict]
    answer: str | None
    grader: str  # one of GRADERS
    extra: dict | None = None  # reasoning_gym: task, seed, size, index, entry
    completion: str | None = None  # a text to learn from, where the data set has one


@runtime_checkable
class RecordRules(Protocol):
    """What is read of a configuration section, to read a record."""

    @property
    def fields(self) -> dict[str, str]: ...
    @property
    def answer_part(self) -> str: ...
    @property
    def wrong_answers(self) -> list[str]: ...
    @property
    def grader(self) -> str: ...


def read_record(record: Any, rules: RecordRules, place: str) -> Prompt:
    """Check one record. An answer or id field must be there only if `fields` names it. Raises UserError with its place.

    place: file and line, as the error names them; its last word is the id of a record without one.
    """
    fields = rules.fields
    if not isinstance(record, dict):
        raise UserError(f"{place}: expected an object with the field '{fields.get('prompt', 'prompt')}'")
    for role in FIELDS[:3]:
        name = fields.get(role, role)
        if name not in record and (role == "prompt" or role in fields):
            raise UserError(f"{place}: the field '{name}' is missing; data.fields.{role} says which field holds it")
    values: dict[str, Any] = {role: record.get(fields.get(role, role)) for role in FIELDS}
    _check_prompt(values["prompt"], fields.get("prompt", "prompt"), place)
    for role in ("answer", "id"):
        if values[role] is not None and not isinstance(values[role], str | int | float):
            raise UserError(f"{place}: the field '{fields.get(role, role)}' is neither text nor a number")
    if not isinstance(values["completion"], str | None):
        raise UserError(f"{place}: the field '{fields.get('completion', 'completion')}' is not text")
    question, answer = values["prompt"], _answer(values["answer"], rules, place)
    if rules.wrong_answers:
        question, answer = _choices(question, answer, record, rules, place)
    grader = "none" if answer is None else record.get("grader") or rules.grader
    if grader not in OF_RECORDS:
        raise UserError(f"{place}: grader '{grader}' is unknown; it is math, exact, choice or arithmetic")
    identity = place.rpartition(" ")[2] if values["id"] is None else str(values["id"])
    return Prompt(identity, question, answer, grader, completion=values["completion"])


def instructed(prompt: str | list[dict], instruction: str | None) -> str | list[dict]:
    """The prompt with a line more at its end: of the text, or of the last message."""
    if not instruction:
        return prompt
    if isinstance(prompt, str):
        return f"{prompt}\n{instruction}"
    return [*prompt[:-1], {**prompt[-1], "content": f"{prompt[-1]['content']}\n{instruction}"}]


def _answer(value: Any, rules: RecordRules, place: str) -> str | None:
    """The part of the answer's field that is the answer."""
    if value is None or rules.answer_part == "whole":
        return None if value is None else str(value)
    name = rules.fields.get("answer", "answer")
    if rules.answer_part == "boxed":
        found, what = last_boxed(str(value)), "\\boxed{...}"
    else:
        _, hashes, after = str(value).rpartition("####")
        found, what = (after if hashes else None), "####"
    if found is None or not found.strip():
        raise UserError(f"{place}: the field '{name}' has no {what} with an answer, which answer_part asks for")
    return found.strip()


def _choices(question: Any, answer: str | None, record: dict, rules: RecordRules, place: str) -> tuple[str, str]:
    """(question with its choices A, B, ... behind it, the letter of the right one).

    Their order is drawn from the question's text alone: it is the same in every run, wherever the record stands.
    """
    if not isinstance(question, str) or answer is None:
        raise UserError(f"{place}: a multiple choice (wrong_answers) needs a text as its prompt, and an answer")
    wrong = [record.get(name) for name in rules.wrong_answers]
    for name, value in zip(rules.wrong_answers, wrong, strict=True):
        if not isinstance(value, str | int | float):
            raise UserError(f"{place}: the field '{name}', one of the wrong_answers, is missing or not text")
    choices = [answer.strip(), *(str(value).strip() for value in wrong)]
    order = list(range(len(choices)))
    random.Random(question).shuffle(order)
    lines = [f"{letter}) {choices[which]}" for letter, which in zip(LETTERS, order, strict=False)]
    return "\n".join([question.strip(), "", *lines]), LETTERS[order.index(0)]


def _check_prompt(prompt: Any, field: str, place: str) -> None:
    if isinstance(prompt, str):
        if not prompt.strip():
            raise UserError(f"{place}: the field '{field}' is empty")
        return
    messages = prompt if isinstance(prompt, list) else []
    good = (
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in messages
    )
    if not messages or not all(good):
        raise UserError(f"{place}: the field '{field}' is neither text nor a list of messages with role and content")
