"""The shipped task: chains of small additions and subtractions, solved one line at a time.

A prompt is `12+7-5=`; its golden completion is

    12+7=19
    19-5=14
    #14

A line depends only on the line before it and on the prompt's next term, so a small character-level model can learn it,
and after one wrong digit all later totals are wrong. Totals stay within 0..MAX_VALUE; terms have one digit.
Left out: multiplication, brackets, negative totals.
"""

import hashlib
import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

from motab_jax.config import UserError

MIN_TERMS, MAX_TERMS = 5, 11  # 4..10 operations
MAX_VALUE = 99  # of the first number and of every running total
MAX_TERM = 9  # of what is added or subtracted
HELD_OUT_SHARE = 10  # one prompt in so many is held out
SPLITS = ("train", "held_out")

PAD, EOS, BOS, UNKNOWN = "<pad>", "<eos>", "<bos>", "<unk>"
SPECIAL_TOKENS = (PAD, EOS, BOS, UNKNOWN)
ALPHABET = "0123456789+-=#\n .,ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

# \Z, not $: a completion counts only if it ends with its final answer.
_FINAL_ANSWER = re.compile(r"(?:\A|\n)#(-?\d+|[A-Za-z]+)\s*\Z")


@runtime_checkable
class HasPrompt(Protocol):
    """Any task's problem."""

    @property
    def prompt(self) -> str:
        """What the model is given."""
        ...


Drawn = TypeVar("Drawn", bound=HasPrompt)


@dataclass(frozen=True)
class Problem:
    """A start value and the signed terms that are added to it, in order; no term is zero."""

    first: int
    terms: tuple[int, ...]

    @property
    def prompt(self) -> str:
        """As the model is given it: `12+7-5=`."""
        return f"{self.first}{''.join(f'{term:+d}' for term in self.terms)}="

    @property
    def answer(self) -> str:
        """The sum, in digits."""
        return str(self.first + sum(self.terms))


def sample_problem(rng: random.Random, *, min_terms: int = MIN_TERMS, max_terms: int = MAX_TERMS) -> Problem:
    """Draw a problem of min_terms..max_terms numbers whose totals are all in 0..MAX_VALUE."""
    total = first = rng.randint(1, MAX_VALUE)
    terms = []
    for _ in range(rng.randint(min_terms, max_terms) - 1):
        plus = total == 0 or (total < MAX_VALUE and rng.random() < 0.5)
        term = rng.randint(1, min(MAX_TERM, MAX_VALUE - total)) if plus else -rng.randint(1, min(MAX_TERM, total))
        terms.append(term)
        total += term
    return Problem(first, tuple(terms))


def split_of(text: str, *, share: int = HELD_OUT_SHARE) -> str:
    """`held_out` for about one text in `share`, else `train`; a fixed function of the text."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return "held_out" if int.from_bytes(digest, "big") % share == 0 else "train"


def problems(
    count: int, *, seed: int, split: str, min_terms: int = MIN_TERMS, max_terms: int = MAX_TERMS
) -> list[Problem]:
    """The first `count` distinct problems of a split; a larger count only appends to the list.

    Args:
      count: number of problems.
      seed: of the random order.
      split: `train` or `held_out`; the two share no prompt, whatever their seeds.
      min_terms: least count of numbers in a problem.
      max_terms: greatest count of numbers in a problem.

    Raises:
      UserError: for an unknown split, for bad lengths, and where there are too few problems of these lengths.
    """
    if not 2 <= min_terms <= max_terms:
        raise UserError(f"arithmetic needs 2 <= min_terms <= max_terms, got {min_terms} and {max_terms}")
    rng = random.Random(f"arithmetic/{split}/{seed}")  # a text seed is hashed the same way on every platform
    return distinct_problems(
        "arithmetic", lambda: sample_problem(rng, min_terms=min_terms, max_terms=max_terms), count, split
    )


def distinct_problems(source: str, draw: Callable[[], Drawn], count: int, split: str) -> list[Drawn]:
    """Draw until there are `count` problems of a split with different prompts.

    Args:
      source: the task's name, for errors.
      draw: draws a problem.
      count: number of problems.
      split: `train` or `held_out`.

    Returns:
      The problems in the order they were drawn.

    Raises:
      UserError: for an unknown split, and where too few problems come up.
    """
    if split not in SPLITS:
        raise UserError(f"data.split = '{split}': the {source} source has the splits {' and '.join(SPLITS)}")
    drawn: dict[str, Drawn] = {}
    for _ in range(100 * count + 1000):
        if len(drawn) == count:
            break
        problem = draw()
        if split_of(problem.prompt) == split:
            drawn.setdefault(problem.prompt, problem)
    if len(drawn) < count:
        raise UserError(f"the {source} source has too few '{split}' problems of these lengths for {count}")
    return list(drawn.values())


def solution(problem: Problem) -> str:
    r"""The golden completion without the end token: a line for each operation, then `#` and the answer.

    >>> solution(Problem(12, (7, -5)))
    '12+7=19\n19-5=14\n#14'
    """
    lines, total = [], problem.first
    for term in problem.terms:
        lines.append(_line(total, term, total + term))
        total += term
    return "".join(lines) + f"#{total}"


def final_answer(text: str) -> str | None:
    """The number or the letters of the `#` line at a completion's end; None without such a line."""
    match = _FINAL_ANSWER.search(text)
    if match is None:
        return None
    if match[1].isalpha():
        return match[1]
    digits = match[1].lstrip("-").lstrip("0")  # as text: int() refuses thousands of digits
    return f"-{digits}" if digits and match[1].startswith("-") else digits or "0"


def corrupt(problem: Problem, steps: int, rng: random.Random, *, lines: int | None = None) -> str:
    """The beginning of a golden completion, with mistakes in its last lines.

    A wrong line adds the correct term to the total before it and gives another total, which is neither the sum nor the
    true total there.

    Args:
      problem: the problem.
      steps: how many lines at the end are wrong.
      rng: draws the totals.
      lines: how many lines in all; None for a random number.

    Raises:
      ValueError: unless steps <= lines < operations, so that at least one operation is left.
    """
    lines = rng.randint(steps, len(problem.terms) - 1) if lines is None else lines
    if not 0 <= steps <= lines < len(problem.terms):
        raise ValueError(f"{steps} wrong of {lines} lines don't fit a chain of {len(problem.terms)} operations")
    written, true = [], problem.first
    total = true
    for number, term in enumerate(problem.terms[:lines]):
        true, before, total = true + term, total, total + term
        if number >= lines - steps:
            total = rng.choice([other for other in range(MAX_VALUE + 1) if other not in (total, true)])
        written.append(_line(before, term, total))
    return "".join(written)


def _line(before: int, term: int, total: int) -> str:
    return f"{before}{term:+d}={total}\n"


def write_tokenizer(folder: str | Path) -> None:
    """Write a character-level tokenizer that transformers loads: tokenizer.json and tokenizer_config.json.

    The ids are four special tokens (<pad> is 0, <eos> is 1), then the characters of ALPHABET. Encoding puts <bos> in
    front; decoding returns the same characters.
    """
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "eos_token": EOS,
        "bos_token": BOS,
        "unk_token": UNKNOWN,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("tokenizer.json", _tokenizer_description()), ("tokenizer_config.json", settings)):
        (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _tokenizer_description() -> dict:
    """The content of tokenizer.json, as the tokenizers library reads it."""
    vocabulary = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *ALPHABET))}
    specials = [
        {"id": vocabulary[token], "content": token, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
        for token in SPECIAL_TOKENS
    ]  # fmt: skip
    begin, text = {"SpecialToken": {"id": BOS, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": specials,
        "normalizer": None,
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, text],
            "pair": [begin, text, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {BOS: {"id": BOS, "ids": [vocabulary[BOS]], "tokens": [BOS]}},
        },
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": UNKNOWN},
    }
