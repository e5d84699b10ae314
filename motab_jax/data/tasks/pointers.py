"""The second shipped task: follow arrows through a shuffled map in the prompt, a line for each hop.

A prompt is `Qw,fc,Lx,kf.k2=`: Q leads to w, f to c and so on; start at k and make 2 hops. Its golden completion is

    f1
    c0
    #c

A line holds the key reached and the hops that remain, as the prompt's end does, so it depends only on the line before
it and on the map. The map is one path and distractors: arrows from keys that no arrow leads to, to keys without an
arrow. So a wrong key is not in the map or has no arrow after one hop, and no golden completion shows what follows a
mistake (unless the mistake is a jump along the path).
Left out: cycles, arrows that meet, keys of more than one letter.
"""

import random
import string
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from motab_jax.config import UserError
from motab_jax.data.tasks.arithmetic import distinct_problems

MIN_HOPS, MAX_HOPS = 4, 8
ENTRIES = 12  # arrows in a map
KEYS = string.ascii_letters  # a map uses about a third of them


@dataclass(frozen=True)
class Problem:
    """Arrows (from, to) in the prompt's order, the key to start at, and the number of hops."""

    arrows: tuple[tuple[str, str], ...]
    start: str
    hops: int

    @property
    def prompt(self) -> str:
        """As the model is given it: `ab,bc,cd.a3=`."""
        return f"{','.join(a + b for a, b in self.arrows)}.{self.start}{self.hops}="

    @cached_property
    def path(self) -> tuple[str, ...]:
        """The keys after 0, 1, ..., `hops` hops."""
        target, path = dict(self.arrows), [self.start]
        for _ in range(self.hops):
            path.append(target[path[-1]])
        return tuple(path)

    @property
    def answer(self) -> str:
        """The key at the end of the path."""
        return self.path[-1]


def sample_problem(
    rng: random.Random, *, min_hops: int = MIN_HOPS, max_hops: int = MAX_HOPS, entries: int = ENTRIES
) -> Problem:
    """Draw a problem of min_hops..max_hops hops through a map of `entries` arrows."""
    hops = rng.randint(min_hops, max_hops)
    keys = rng.sample(KEYS, hops + 1 + 2 * (entries - hops))
    path, others = keys[: hops + 1], keys[hops + 1 :]
    arrows = [*pairwise(path), *zip(others[::2], others[1::2], strict=True)]
    rng.shuffle(arrows)
    return Problem(tuple(arrows), path[0], hops)


def problems(
    count: int,
    *,
    seed: int,
    split: str,
    min_hops: int = MIN_HOPS,
    max_hops: int = MAX_HOPS,
    entries: int = ENTRIES,
) -> list[Problem]:
    """The first `count` distinct problems of a split; a larger count only appends to the list.

    Args:
      count: number of problems.
      seed: of the random order.
      split: `train` or `held_out`; the two share no prompt, whatever their seeds.
      min_hops: least number of hops.
      max_hops: greatest number of hops, at most 9 (one digit).
      entries: arrows in a map.

    Raises:
      UserError: for an unknown split, and for hops or a map out of range.
    """
    if not (1 <= min_hops <= max_hops <= 9 and max_hops <= entries < len(KEYS) // 2):
        raise UserError(
            f"pointers needs 1 <= min_hops <= max_hops <= 9 and max_hops <= entries < {len(KEYS) // 2}; "
            f"got {min_hops}, {max_hops} and {entries} entries"
        )
    rng = random.Random(f"pointers/{split}/{seed}")  # a text seed is hashed the same way on every platform
    return distinct_problems(
        "pointers",
        lambda: sample_problem(rng, min_hops=min_hops, max_hops=max_hops, entries=entries),
        count,
        split,
    )


def solution(problem: Problem) -> str:
    r"""The golden completion without the end token: a line for each hop, then `#` and the answer.

    >>> solution(Problem((("Q", "w"), ("f", "c"), ("k", "f")), "k", 2))
    'f1\nc0\n#c'
    """
    return "".join(_line(problem, n, problem.path[n]) for n in range(1, problem.hops + 1)) + f"#{problem.answer}"


def corrupt(problem: Problem, steps: int, rng: random.Random, *, lines: int | None = None) -> str:
    """The beginning of a golden completion, with mistakes in its last lines.

    A wrong line has the correct count and a key that is neither on the path nor where the line before it leads.

    Args:
      problem: the problem.
      steps: how many lines at the end are wrong.
      rng: draws the keys.
      lines: how many lines in all; None for a random number.

    Raises:
      ValueError: unless steps <= lines < hops, so that at least one hop is left.
    """
    lines = rng.randint(steps, problem.hops - 1) if lines is None else lines
    if not 0 <= steps <= lines < problem.hops:
        raise ValueError(f"{steps} wrong of {lines} lines don't fit a chain of {problem.hops} hops")
    target = dict(problem.arrows)
    path = problem.path
    written = [_line(problem, n, path[n]) for n in range(1, lines - steps + 1)]
    before = path[lines - steps]
    for n in range(lines - steps + 1, lines + 1):
        before = rng.choice([key for key in KEYS if key not in path and key not in (before, target.get(before))])
        written.append(_line(problem, n, before))
    return "".join(written)


def _line(problem: Problem, number: int, key: str) -> str:
    return f"{key}{problem.hops - number}\n"
