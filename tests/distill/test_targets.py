"""`build_targets` against a plain-Python builder, on random logs with several rewinds."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motab_jax.data.sources import Source
from motab_jax.distill import Objective, build_targets
from motab_jax.distill.objective import token_weights
from motab_jax.distill.targets import TokenKind
from motab_jax.rollout.trajectory import KEPT, empty_trajectory
from tests.optional import some

ROWS, PROMPT, ENTRIES, REWINDS, WIDTH = 12, 4, 40, 3, 2
TRANSITION = [90, 91, 92]
build = jax.jit(build_targets, static_argnames=("target", "max_tokens"))


@dataclasses.dataclass
class Row:
    """One trajectory as a list of (token, source, discarded_by), with the places of its rewinds."""

    prompt: list[int]
    log: Sequence[tuple[int, int, int]]
    rewind_at: list[int]

    def target(self, kind: str, transition: list[int]) -> list[tuple[int, int, int]]:
        """(token, kind, log entry or -1) of every token behind the prompt."""
        out = []
        for entry, (token, source, dropped) in enumerate(self.log):
            if kind == "stitched" and entry in self.rewind_at:
                out += [(t, TokenKind.TRANSITION, -1) for t in transition]
            if dropped == KEPT:
                out.append((token, TokenKind.TEACHER if source == Source.TEACHER else TokenKind.STUDENT, entry))
            elif kind == "stitched":
                out.append((token, TokenKind.FLAWED, entry))
        return out


def random_row(rng: np.random.Generator, rewinds: int) -> Row:
    """The student writes, its last tokens are dropped, the teacher writes; again, and the student goes on at last."""
    log, rewind_at = [], []

    def write(source: int, dropped: int, least: int) -> None:
        for _ in range(rng.integers(least, 4)):
            log.append((int(rng.integers(2, 80)), source, dropped))

    for number in range(rewinds):
        write(Source.STUDENT, KEPT, 0)
        write(Source.STUDENT, number, 1)
        rewind_at.append(len(log))
        write(Source.TEACHER, KEPT, 1)
    write(Source.STUDENT, KEPT, 0 if log else 1)
    return Row(rng.integers(2, 80, rng.integers(1, PROMPT + 1)).tolist(), log, rewind_at)


def trajectory_of(rows: list[Row]):
    """The rows as the rollout leaves them, with rubbish beyond each log's length."""
    rng = np.random.default_rng(9)
    count = len(rows)
    prompts, positions = np.zeros((2, count, PROMPT), np.int32)
    log = np.stack([rng.integers(2, 80, (count, ENTRIES)), *rng.integers(1, 3, (2, count, ENTRIES))])
    log[2] = KEPT
    rewind_at = np.zeros((count, REWINDS), np.int32)
    for row, made in enumerate(rows):
        size = len(made.prompt)
        prompts[row, PROMPT - size :] = made.prompt
        positions[row] = np.maximum(np.arange(PROMPT) - (PROMPT - size), -1)
        log[:, row, : len(made.log)] = np.array(made.log).T
        rewind_at[row, : len(made.rewind_at)] = made.rewind_at
    tokens, sources, discarded = (jnp.asarray(x, jnp.int32) for x in log)
    base = empty_trajectory(jnp.asarray(prompts), jnp.asarray(positions), ENTRIES, REWINDS, WIDTH, jnp.float32)
    return base.replace(
        tokens=tokens,
        sources=sources,
        discarded_by=discarded,
        teacher_hidden=jnp.asarray(1 + np.arange(count * ENTRIES * WIDTH).reshape(count, ENTRIES, WIDTH), jnp.float32),
        length=jnp.array([len(made.log) for made in rows]),
        num_rewinds=jnp.array([len(made.rewind_at) for made in rows]),
        rewind_at=jnp.asarray(rewind_at),
    )


def rows_with_every_count() -> list[Row]:
    """Rows with 0 to REWINDS rewinds."""
    rng = np.random.default_rng(4)
    return [random_row(rng, row % (REWINDS + 1)) for row in range(ROWS)]


@pytest.mark.parametrize(
    ("target", "transition", "max_tokens"),
    [
        ("stitched", TRANSITION, None),
        ("stitched", TRANSITION, 9),
        ("stitched", [], None),
        ("spliced", TRANSITION, None),
        ("spliced", [], 9),
    ],
)
def test_equals_a_plain_builder(target, transition, max_tokens):
    rows = rows_with_every_count()
    trajectory = trajectory_of(rows)
    batch = build(trajectory, target=target, transition=jnp.array(transition, jnp.int32), max_tokens=max_tokens)
    room = max_tokens or ENTRIES + (REWINDS * len(transition) if target == "stitched" else 0)
    assert batch.tokens.shape == (ROWS, PROMPT + room)
    for row, made in enumerate(rows):
        expected = made.target(target, transition)[:room]
        whole, size = PROMPT + len(expected), len(made.prompt)
        tokens, kinds, entries = zip(*expected, strict=True)
        assert batch.tokens[row, PROMPT - size : whole].tolist() == [*made.prompt, *tokens]
        assert batch.kinds[row, :PROMPT].tolist() == [TokenKind.NONE] * PROMPT
        assert batch.kinds[row, PROMPT:].tolist() == [*kinds] + [TokenKind.NONE] * (room - len(expected))
        behind = [-1] * (PROMPT + room - whole)
        assert batch.positions[row].tolist() == [-1] * (PROMPT - size) + [*range(size + len(expected))] + behind
        hidden = [some(trajectory.teacher_hidden)[row, e].tolist() if e >= 0 else [0.0] * WIDTH for e in entries]
        assert batch.teacher_hidden[row, PROMPT:whole].tolist() == hidden
        assert not batch.teacher_hidden[row, :PROMPT].any() and not batch.teacher_hidden[row, whole:].any()


def test_by_hand():
    """Prompt 5 6; the student writes 10 11 12, 11 12 are dropped, the teacher writes 20 21."""
    log = [
        (10, Source.STUDENT, KEPT),
        (11, Source.STUDENT, 0),
        (12, Source.STUDENT, 0),
        (20, Source.TEACHER, KEPT),
        (21, Source.TEACHER, KEPT),
    ]
    trajectory = trajectory_of([Row([5, 6], log, [3])])
    stitched = build(trajectory, target="stitched", transition=jnp.array([90]))
    assert stitched.tokens[0, 2:10].tolist() == [5, 6, 10, 11, 12, 90, 20, 21]
    assert stitched.kinds[0, 4:11].tolist() == [
        TokenKind.STUDENT, TokenKind.FLAWED, TokenKind.FLAWED, TokenKind.TRANSITION,
        TokenKind.TEACHER, TokenKind.TEACHER, TokenKind.NONE,
    ]  # fmt: skip
    spliced = build(trajectory, target="spliced", transition=jnp.array([90]))
    assert spliced.tokens[0, 2:7].tolist() == [5, 6, 10, 20, 21]
    assert spliced.kinds[0, 4:8].tolist() == [TokenKind.STUDENT, TokenKind.TEACHER, TokenKind.TEACHER, TokenKind.NONE]
    assert spliced.positions[0, 2:8].tolist() == [0, 1, 2, 3, 4, -1]


def test_memory_is_linear_in_rewinds():
    rows, entries, rewinds = 4, 1024, 512
    nothing, index = jnp.zeros((rows, 2), jnp.int32), jnp.arange(2, dtype=jnp.int32)[None] + jnp.zeros((rows, 1), int)
    trajectory = empty_trajectory(nothing, index, entries, rewinds, WIDTH, jnp.float32)
    compiled = build.lower(trajectory, target="stitched", transition=jnp.array([90]), max_tokens=None).compile()
    assert some(compiled.memory_analysis()).temp_size_in_bytes < rows * entries * rewinds / 4


def test_a_stop_token_with_the_id_of_padding_is_trained_on():
    """As in models whose padding token is their stop token: what counts are lengths, not ids."""
    log = [(10, Source.STUDENT, KEPT), (0, Source.STUDENT, KEPT)]
    batch = build(trajectory_of([Row([5, 0], log, [])]), target="stitched", transition=jnp.array([90]))
    assert batch.tokens[0, 2:6].tolist() == [5, 0, 10, 0] and batch.positions[0, 2:7].tolist() == [0, 1, 2, 3, -1]
    assert token_weights(batch.kinds, Objective())[0, 2:7].tolist() == [0.0, 0.0, 0.5, 0.5, 0.0]
