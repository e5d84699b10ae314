"""A record of a data set, checked and read as a prompt.

A record needs a prompt, a string or a list of chat messages, and may have `id`, `answer`, `completion` and `grader`;
`fields` renames the first four. In a multiple choice, the choices are listed after the question.
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
    """One problem. `answer` is None where none is known; then `grader` is `none`, or `reasoning_gym`."""

    id: str
    prompt: str | list[dict]
    answer: str | None
    grader: str  # one of GRADERS
    extra: dict | None = None  # reasoning_gym: task, seed, size, index, entry
    completion: str | None = None  # to train on, where the data set has one


@runtime_checkable
class RecordRules(Protocol):
    """The keys of a configuration section that say how a record is read."""

    @property
    def fields(self) -> dict[str, str]:
        """The record's names for prompt, answer, id and completion."""
        ...

    @property
    def answer_part(self) -> str:
        """The part of the answer field that counts: all, behind ####, or in a box."""
        ...

    @property
    def wrong_answers(self) -> list[str]:
        """The fields of a multiple-choice question's wrong answers."""
        ...

    @property
    def grader(self) -> str:
        """How completions are graded: one of GRADERS."""
        ...


def read_record(record: Any, rules: RecordRules, location: str) -> Prompt:
    """Check one record and read its prompt.

    Args:
      record: the object of a line or row. An answer or id must be in it only if `rules.fields` names its field.
      rules: how to read it.
      location: file and line, for errors; its last word is the id of a record that has none.

    Raises:
      UserError: for a field that is missing or of the wrong type, and for an unknown grader.
    """
    fields = rules.fields
    if not isinstance(record, dict):
        raise UserError(f"{location}: expected an object with the field '{fields.get('prompt', 'prompt')}'")
    for role in FIELDS[:3]:
        name = fields.get(role, role)
        if name not in record and (role == "prompt" or role in fields):
            raise UserError(f"{location}: the field '{name}' is missing; data.fields.{role} says which field holds it")
    values: dict[str, Any] = {role: record.get(fields.get(role, role)) for role in FIELDS}
    _check_prompt(values["prompt"], fields.get("prompt", "prompt"), location)
    for role in ("answer", "id"):
        if values[role] is not None and not isinstance(values[role], str | int | float):
            raise UserError(f"{location}: the field '{fields.get(role, role)}' is neither text nor a number")
    if not isinstance(values["completion"], str | None):
        raise UserError(f"{location}: the field '{fields.get('completion', 'completion')}' is not text")
    question, answer = values["prompt"], _answer(values["answer"], rules, location)
    if rules.wrong_answers:
        question, answer = _choices(question, answer, record, rules, location)
    grader = "none" if answer is None else record.get("grader") or rules.grader
    if grader not in OF_RECORDS:
        raise UserError(f"{location}: grader '{grader}' is unknown; it is math, exact, choice or arithmetic")
    identity = location.rpartition(" ")[2] if values["id"] is None else str(values["id"])
    return Prompt(identity, question, answer, grader, completion=values["completion"])


def instructed(prompt: str | list[dict], instruction: str | None) -> str | list[dict]:
    """The prompt with the instruction as a line at the end of its text, or of its last message."""
    if not instruction:
        return prompt
    if isinstance(prompt, str):
        return f"{prompt}\n{instruction}"
    return [*prompt[:-1], {**prompt[-1], "content": f"{prompt[-1]['content']}\n{instruction}"}]


def _answer(value: Any, rules: RecordRules, location: str) -> str | None:
    """The part of the answer's field that `rules.answer_part` names."""
    if value is None or rules.answer_part == "whole":
        return None if value is None else str(value)
    name = rules.fields.get("answer", "answer")
    if rules.answer_part == "boxed":
        answer, mark = last_boxed(str(value)), "\\boxed{...}"
    else:
        _, hashes, after = str(value).rpartition("####")
        answer, mark = (after if hashes else None), "####"
    if answer is None or not answer.strip():
        raise UserError(f"{location}: the field '{name}' has no {mark} with an answer, which answer_part asks for")
    return answer.strip()


def _choices(question: Any, answer: str | None, record: dict, rules: RecordRules, location: str) -> tuple[str, str]:
    """(question with its choices A, B, ... after it, the letter of the correct one).

    Their order is drawn from the question's text alone, so it is the same in every run and at every position.
    """
    if not isinstance(question, str) or answer is None:
        raise UserError(f"{location}: a multiple choice (wrong_answers) needs a text as its prompt, and an answer")
    wrong = [record.get(name) for name in rules.wrong_answers]
    for name, value in zip(rules.wrong_answers, wrong, strict=True):
        if not isinstance(value, str | int | float):
            raise UserError(f"{location}: the field '{name}', one of the wrong_answers, is missing or not text")
    choices = [answer.strip(), *(str(value).strip() for value in wrong)]
    order = list(range(len(choices)))
    random.Random(question).shuffle(order)
    lines = [f"{letter}) {choices[index]}" for letter, index in zip(LETTERS, order, strict=False)]
    return "\n".join([question.strip(), "", *lines]), LETTERS[order.index(0)]


def _check_prompt(prompt: Any, field: str, location: str) -> None:
    if isinstance(prompt, str):
        if not prompt.strip():
            raise UserError(f"{location}: the field '{field}' is empty")
        return
    messages = prompt if isinstance(prompt, list) else []
    good = (
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in messages
    )
    if not messages or not all(good):
        raise UserError(f"{location}: the field '{field}' is neither text nor a list of messages with role and content")
