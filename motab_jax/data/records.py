"""A record of a data set, checked and read as a prompt.

A record needs a prompt, a string or a list of chat messages, and may have `id`, `answer`, `completion` and `grader`;
`fields` renames the first four, and dots lead into objects and lists: `reward_model.ground_truth`. In a multiple
choice, the choices are listed after the question.
Left out: where records come from (`prompts.py`), the forms of messages (`messages.py`).
"""

import math
import random
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from motab_jax.config import UserError
from motab_jax.data.extract import last_boxed
from motab_jax.data.messages import completion_of, read_messages

GRADERS = ("arithmetic", "math", "reasoning_gym", "exact", "choice", "none")
OF_RECORDS = ("math", "exact", "choice", "arithmetic", "none")
FIELDS = ("prompt", "answer", "id", "completion")
LETTERS = "ABCDEFGH"
MISSING = object()  # what a field that is not there has for a value
SHOWN = 8  # names of a record's fields in an error message


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
    names = {role: fields.get(role, role) for role in FIELDS}
    values = {role: find_field(record, name) for role, name in names.items()}
    for role in FIELDS[:3]:
        if values[role] is MISSING and (role == "prompt" or role in fields):
            there = ", ".join(list(record)[:SHOWN]) or "none"
            raise UserError(
                f"{location}: the field '{names[role]}' is missing; data.fields.{role} says which field holds it "
                f"(fields here: {there})"
            )
    values = {role: None if value is MISSING else value for role, value in values.items()}
    labels = {role: f"{location}: the field '{name}'" for role, name in names.items()}
    question, completion = _question(values, names, labels)
    identity = _plain_value(values["id"], labels["id"])
    answer = _answer(_known_answer(values["answer"], record, rules, labels["answer"]), rules, location)
    if rules.wrong_answers:
        question, answer = _choices(question, answer, record, rules, location)
    grader = "none" if answer is None else record.get("grader") or rules.grader
    if grader not in OF_RECORDS:
        raise UserError(f"{location}: grader '{grader}' is unknown; it is math, exact, choice or arithmetic")
    return Prompt(identity or location.rpartition(" ")[2], question, answer, grader, completion=completion)


def find_field(record: dict, name: str) -> Any:
    """The value of a field, or MISSING. A name that the record lacks as it is may lead inside: `a.b`, `answers.0`."""
    if name in record:
        return record[name]
    value: Any = record
    for part in name.split("."):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return MISSING
    return value


def _question(values: dict, names: dict[str, str], labels: dict[str, str]) -> tuple[str | list[dict], str | None]:
    """(prompt, completion): each a text or messages in the record; of one field with both, the last turn is learnt."""
    question, completion, label = values["prompt"], values["completion"], labels["prompt"]
    together = names["prompt"] == names["completion"]
    if isinstance(question, str):
        if not question.strip():
            raise UserError(f"{label} is empty")
        if together:
            raise UserError(f"{label} is text, so it can't be both the prompt and the completion")
        question = _encodable(question, label)
    else:
        question = read_messages(question, label)
        for message in question:
            _encodable(message["content"], label)
        last = question[-1]["role"] == "assistant"
        if last and not together:
            raise UserError(
                f"{label} ends with the assistant's turn, which would give the model its answer; to train on that "
                f"turn set data.fields={{prompt: {names['prompt']}, completion: {names['prompt']}}}, else remove it"
            )
        if together:
            completion = question[-1:] if last else None
            question = question[:-1] if last else question
            if not question:
                raise UserError(f"{label} has no message before the assistant's turn")
    if completion is not None and not isinstance(completion, str):
        if not isinstance(completion, list) or not all(isinstance(message, dict) for message in completion):
            raise UserError(f"{labels['completion']} is not text")
        completion = completion_of(read_messages(completion, labels["completion"]), labels["completion"])
    return question, None if completion is None else _encodable(completion, labels["completion"])


def _encodable(text: str, label: str) -> str:
    """The text itself. UserError if it has half a surrogate pair, which is no character."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])[1:-1]
        raise UserError(f"{label} has {half}, half of a surrogate pair, which is no text") from None
    return text


def _plain_value(value: Any, label: str) -> str | None:
    """A text or a number as text; None where there is none."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UserError(f"{label} is neither text nor a number")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(
            f"{label} is {value}, which is not a number that can be an answer; leave it out where none is known"
        )
    return _encodable(str(value), label)


def _known_answer(value: Any, record: dict, rules: RecordRules, label: str) -> str | None:
    """The answer as text: of a list its only one, or all of a math problem's. Blank ones count as none."""
    if not isinstance(value, list):
        answer = _plain_value(value, label)
        return answer if answer and answer.strip() else None
    answers = [answer for entry in value if (answer := _plain_value(entry, label)) and answer.strip()]
    if len(set(answers)) > 1 and (record.get("grader") or rules.grader) != "math":
        name = rules.fields.get("answer", "answer")
        raise UserError(f"{label} has {len(answers)} answers; data.fields.answer={name}.0 takes the first")
    return ", ".join(dict.fromkeys(answers)) or None


def instructed(prompt: str | list[dict], instruction: str | None) -> str | list[dict]:
    """The prompt with the instruction as a line at the end of its text, or of its last message."""
    if not instruction:
        return prompt
    if isinstance(prompt, str):
        return f"{prompt}\n{instruction}"
    return [*prompt[:-1], {**prompt[-1], "content": f"{prompt[-1]['content']}\n{instruction}"}]


def _answer(value: str | None, rules: RecordRules, location: str) -> str | None:
    """The part of the answer's field that `rules.answer_part` names."""
    if value is None or rules.answer_part == "whole":
        return value
    name = rules.fields.get("answer", "answer")
    if rules.answer_part == "boxed":
        answer, mark = last_boxed(value), "\\boxed{...}"
    else:
        _, hashes, after = value.rpartition("####")
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
    wrong = [find_field(record, name) for name in rules.wrong_answers]
    for name, value in zip(rules.wrong_answers, wrong, strict=True):
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise UserError(f"{location}: the field '{name}', one of the wrong_answers, is missing or not text")
    choices = [answer.strip(), *(str(value).strip() for value in wrong)]
    order = list(range(len(choices)))
    random.Random(question).shuffle(order)
    lines = [f"{letter}) {choices[index]}" for letter, index in zip(LETTERS, order, strict=False)]
    return "\n".join([question.strip(), "", *lines]), LETTERS[order.index(0)]
