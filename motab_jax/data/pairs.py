"""Whether two models' tokenizers go together: one that both agree on, and what of it counts.

The student is trained on the teacher's distribution over the same ids, so both must cut a text into the same ids. One
may have more tokens at the end, such as those that a later release added: these are never generated. Special flags and
chat templates may differ, which is said. Left out: pairs whose tokenizers differ otherwise; they are refused.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from motab_jax.config import UserError
from motab_jax.data.stop_tokens import stop_ids
from motab_jax.data.tokenizer import PROBE, load_tokenizer, vocab_size
from motab_jax.runtime.notices import notice

_SHOWN = 3  # differing tokens in a message


@dataclasses.dataclass(frozen=True)
class SharedTokenizer:
    """What the models of a run share."""

    tokenizer: Any  # transformers': the student's or the teacher's, as `choose_template` says
    vocab_size: int  # ids that both have in common
    stop_id: int  # ends a completion that is given: the teacher's own, where there is a teacher
    stop_ids: tuple[int, ...]  # of both; each ends a completion

    def check(self, prompt_tokens: Sequence[Sequence[int]], names: Sequence[str]) -> None:
        """UserError, with the first prompt's name, if a prompt holds an id that one of the two tokenizers has alone."""
        for ids, name in zip(prompt_tokens, names, strict=True):
            if foreign := [index for index in ids if index >= self.vocab_size]:
                raise UserError(
                    f"{name} has the token {self.tokenizer.convert_ids_to_tokens(foreign[0])!r}, which only one of the "
                    "two models' tokenizers has; data.template chooses whose chat template is used"
                )


def open_tokenizer(
    student: str | Path,
    teacher: str | Path | None,
    template: Literal["student", "teacher"] | None = None,
    *,
    chat_template: bool = False,
) -> SharedTokenizer:
    """Load the tokenizers of a run's models and see whether they go together.

    Args:
      student: folder or hub id of the student.
      teacher: of the teacher; None where there is none.
      template: data.template.
      chat_template: whether prompts have a chat template.

    Raises:
      UserError: a tokenizer cannot be loaded, they do not go together, or there is no stop token that both have.
    """
    own = load_tokenizer(student)
    ids = stop_ids(own, student)
    if teacher in (None, student):
        return SharedTokenizer(own, vocab_size(own), ids[0], ids)
    other = load_tokenizer(teacher)
    taught = stop_ids(other, teacher)
    size = common_vocab_size(own, other)
    common = [index for index in (*taught, *ids) if index < size]
    if not common:
        raise UserError(f"{student} and {teacher} have no stop token in common")
    chosen = choose_template(own, other, template, used=chat_template)
    return SharedTokenizer(chosen, size, common[0], tuple(sorted(set(common))))


def common_vocab_size(student: Any, teacher: Any) -> int:
    """The number of ids, from 0 on, that both tokenizers map to the same tokens. Says what is left out.

    Raises:
      UserError: an id below the smaller vocabulary's end means different tokens, or the tokens are the same and a text
          is cut into different ones; the message shows the first differences.
    """
    ours, theirs = ({index: piece for piece, index in t.get_vocab().items()} for t in (student, teacher))
    size = min(vocab_size(student), vocab_size(teacher))
    differing = sorted(i for i in ours.keys() | theirs.keys() if i < size and ours.get(i) != theirs.get(i))
    if differing:
        shown = "; ".join(
            f"id {i}: student {_quote(ours.get(i))}, teacher {_quote(theirs.get(i))}" for i in differing[:_SHOWN]
        )
        raise UserError(
            f"student.path and teacher.path have different tokenizers ({len(differing)} ids differ): {shown}; "
            "choose a pair that shares one tokenizer"
        )
    _check_cutting(student, teacher)
    for role, vocabulary in (("student", ours), ("teacher", theirs)):
        if more := sorted(index for index in vocabulary if index >= size):
            shown = ", ".join(repr(vocabulary[index]) for index in more[:_SHOWN]) + (", ..." if more[_SHOWN:] else "")
            notice(f"only the {role}'s tokenizer has {shown}: the ids from {size} on are masked, never generated")
    _say_flags(student, teacher, size)
    return size


def choose_template(student: Any, teacher: Any, chosen: Literal["student", "teacher"] | None, *, used: bool) -> Any:
    """The tokenizer whose chat template and special tokens make the prompts.

    Args:
      student: the student's tokenizer.
      teacher: the teacher's.
      chosen: data.template; None: the student's, which its users will prompt it with, unless it has no template.
      used: whether prompts have a chat template; if they have not, the choice is not worth a word.
    """
    name = chosen or ("teacher" if used and not student.chat_template and teacher.chat_template else "student")
    if used and student.chat_template != teacher.chat_template:
        other = "student" if name == "teacher" else "teacher"
        notice(
            f"the chat templates of student and teacher differ: the {name}'s makes the prompts of both "
            f"(data.template={other} takes the other)"
        )
    return {"student": student, "teacher": teacher}[name]


def _check_cutting(student: Any, teacher: Any) -> None:
    """UserError where the same tokens are put together by other rules."""
    ours, theirs = (json.loads(t.backend_tokenizer.to_str()) for t in (student, teacher))
    if ours["model"].get("merges") != theirs["model"].get("merges"):
        what = "the merges of their tokens differ"
    elif student.encode(PROBE, add_special_tokens=False) != teacher.encode(PROBE, add_special_tokens=False):
        parts = [part for part in ("normalizer", "pre_tokenizer", "model") if ours.get(part) != theirs.get(part)]
        what = f"they cut a text differently ({', '.join(parts)} of tokenizer.json)"
    else:
        return
    raise UserError(
        f"student.path and teacher.path have different tokenizers: {what}; choose a pair that shares one tokenizer"
    )


def _say_flags(student: Any, teacher: Any, size: int) -> None:
    ours, theirs = (
        {index for index, token in t.added_tokens_decoder.items() if token.special and index < size}
        for t in (student, teacher)
    )
    for role, only in (("student", ours - theirs), ("teacher", theirs - ours)):
        if only:
            tokens = student.convert_ids_to_tokens(sorted(only)[:_SHOWN])
            shown = ", ".join(map(repr, tokens)) + (", ..." if len(only) > _SHOWN else "")
            notice(f"special tokens in the {role}'s tokenizer, and ordinary ones in the other's: {shown}")


def _quote(piece: str | None) -> str:
    return "has none" if piece is None else repr(piece)
