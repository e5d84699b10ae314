"""The safety monitor: step values, the adaptive boundary, and the root step (MOTAB, eq. 5-9).

`observe` walks token by token over C columns with the teacher's opinion of them and judges every step that ends,
`find_root` says where the trouble began. Numbers are natural logarithms (nats), at temperature 1.
"""

from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from motab_jax.rollout.rows import store, store_window, to_front, view
from motab_jax.rollout.trajectory import StepTable


@flax.struct.dataclass
class OpenStep:
    """The step that each row is in; B rows."""

    log_likelihood: jax.Array  # f32[B]; sum of the teacher's log-probabilities so far
    tokens: jax.Array  # i32[B]; tokens counted so far
    entropy: jax.Array  # f32[B]; H_k, the teacher's entropy where the step began
    first: jax.Array  # i32[B]; step table entries below it belong to before the last hand-back


def open_step(rows: int) -> OpenStep:
    """No token of any step seen yet."""
    whole, real = jnp.zeros((rows,), jnp.int32), jnp.zeros((rows,), jnp.float32)
    return OpenStep(real, whole, real, whole)


def boundary(entropy: jax.Array, eps0: jax.Array, theta: jax.Array) -> jax.Array:
    """eps_k = eps0 * exp(-theta * H_k) (eq. 7)."""
    return eps0 * jnp.exp(-theta * entropy)


@flax.struct.dataclass
class Columns:
    """C columns to be judged; all [B,C]."""

    logprob: jax.Array  # f32
    entropy: jax.Array  # f32
    alive: jax.Array  # bool; a prefix of each row
    stop: jax.Array  # bool; the token is a stop token
    closes: jax.Array  # bool; a step ends with this token


class Ended(NamedTuple):
    """The steps that ended with each column; all [B,C]."""

    close: jax.Array  # bool; a step ended here
    start: jax.Array  # i32; places in the log
    end: jax.Array  # i32
    value: jax.Array  # f32
    entropy: jax.Array  # f32
    boundary: jax.Array  # f32
    stray: jax.Array  # bool


def observe(
    open_: OpenStep, steps: StepTable, columns: Columns, log_length, may_stray, *, eps0, theta, source, judged=True,
    row=None,
):  # fmt: skip
    """Walk over the columns of slots whose logs hold log_length i32[B] entries; judge every step that ends.

    may_stray bool[B]: slots in which a stray step is a breach; the walk of a slot ends there, and a stop token behind
    the breaching step is not accepted. Without `judged` (bool), steps are entered and none strays. The step table is
    the rows' (see rollout/rows.py). Returns (open step, step table, accepted bool[B,C], breach bool[B]).
    """

    def walk(carry, column):
        open_, place, breach = carry
        alive = column.alive & ~breach
        counts = alive & ~column.stop
        fresh = counts & (open_.tokens == 0)
        open_ = open_.replace(
            log_likelihood=open_.log_likelihood + jnp.where(counts, column.logprob, 0.0),
            tokens=open_.tokens + counts,
            entropy=jnp.where(fresh, column.entropy, open_.entropy),
        )
        close = alive & (column.closes | column.stop) & (open_.tokens > 0)
        ended = _end(open_, close, place + counts, boundary(open_.entropy, eps0, theta), judged)
        breach = breach | (ended.stray & may_stray)
        accepted = alive & ~(column.stop & breach)
        still = jnp.where(close, 0, 1)
        open_ = open_.replace(log_likelihood=open_.log_likelihood * still, tokens=open_.tokens * still)
        return (open_, place + accepted, breach), (accepted, ended)

    start = (open_, log_length, jnp.zeros_like(may_stray))
    (open_, _, breach), (accepted, ended) = jax.lax.scan(walk, start, jax.tree.map(jnp.transpose, columns))
    return open_, _enter(steps, Ended(*(x.T for x in ended)), source, row), accepted.T, breach


def _end(open_: OpenStep, close, end, bar, judged) -> Ended:
    """The open step held against its boundary bar f32[B], in the slots where it closes before log place end i32[B]."""
    value = jnp.exp(open_.log_likelihood / jnp.maximum(open_.tokens, 1))
    return Ended(close, end - open_.tokens, end, value, open_.entropy, bar, close & (value < bar) & judged)


def _enter(steps: StepTable, ended: Ended, source, row) -> StepTable:
    """The step table with the ended steps appended to the slots' rows; it needs C spare entries."""
    count = view(steps.count, row)

    def put(table, block):
        return store_window(table, row, count, to_front(ended.close, block))

    names = ("start", "end", "value", "entropy", "boundary", "stray")
    return steps.replace(
        **{name: put(getattr(steps, name), getattr(ended, name)) for name in names},
        source=store_window(steps.source, row, count, jnp.full_like(ended.start, source)),
        count=store(steps.count, row, count + jnp.sum(ended.close, axis=1, dtype=jnp.int32)),
    )


def find_root(steps: StepTable, first: jax.Array, target: str) -> jax.Array:
    """The root step i32[B] of a breach at the last entry of the table (eq. 8-9).

    It is the step k with the steepest fall V_k - V_{k-1} among those whose predecessor was safe; the first index wins
    a tie. Steps before `first` i32[B] (before the last hand-back) are out of question; where no step qualifies, and
    for target 'breach', it is the breaching step itself.
    """
    last = steps.count - 1
    if target == "breach":
        return last
    index = jnp.arange(steps.value.shape[1])[None]
    fall = steps.value - jnp.roll(steps.value, 1, axis=1)
    safe_before = jnp.roll(steps.value >= steps.boundary, 1, axis=1)
    candidate = safe_before & (index >= 1) & (index >= first[:, None]) & (index <= last[:, None])
    root = jnp.argmin(jnp.where(candidate, fall, jnp.inf), axis=1).astype(jnp.int32)
    return jnp.where(jnp.any(candidate, axis=1), root, last)
