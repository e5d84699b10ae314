"""The safety monitor: step values, the adaptive boundary, and the root step (MOTAB, eq. 5-9).

`observe` walks token by token over C columns with the teacher's scores of them and judges every step that ends,
`find_root` finds the root step. Logarithms are natural (nats), at temperature 1. `MonitorSpec` says what
other methods judge by: the same walk serves them.
"""

from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from motab_jax.data.sources import Source
from motab_jax.rollout.config import MonitorSpec
from motab_jax.rollout.rows import compact_left, gather_rows, scatter_rows, scatter_windows
from motab_jax.rollout.trajectory import KEPT, StepTable

NO_BOUNDARY = 1e30  # as a boundary, with the sign of the alarm: nothing strays
PAPER = MonitorSpec()


@flax.struct.dataclass
class OpenStep:
    """The step that each row is in; B rows."""

    total: jax.Array  # f32[B]; sum of the signal so far
    tokens: jax.Array  # i32[B]; tokens counted so far
    entropy: jax.Array  # f32[B]; H_k, the teacher's entropy where the step began
    first: jax.Array  # i32[B]; step table entries below it belong to before the last hand-back


def open_step(rows: int) -> OpenStep:
    """No token of any step seen yet."""
    whole, real = jnp.zeros((rows,), jnp.int32), jnp.zeros((rows,), jnp.float32)
    return OpenStep(real, whole, real, whole)


def next_boundary(eps0: jax.Array, steps: StepTable, *, rate: float, pace: float, alarm_is_high: bool) -> jax.Array:
    """eps0 f32[] for the next batch, such that in the long run a share `rate` of the student's steps strays.

    It goes a share `pace` of the way to the quantile of this batch's student steps, the discarded ones included; where
    there is none, it stays.
    """
    mine = (jnp.arange(steps.value.shape[1])[None] < steps.count[:, None]) & (steps.source == Source.STUDENT)
    found = jnp.nanquantile(jnp.where(mine, steps.value, jnp.nan), 1.0 - rate if alarm_is_high else rate)
    return jnp.where(jnp.any(mine), (1.0 - pace) * eps0 + pace * found, eps0)


def safety_boundary(entropy: jax.Array, eps0: jax.Array, theta: jax.Array) -> jax.Array:
    """eps_k = eps0 * exp(-theta * H_k) (eq. 7)."""
    return eps0 * jnp.exp(-theta * entropy)


@flax.struct.dataclass
class Columns:
    """C columns to be judged; all [B,C]."""

    signal: jax.Array  # f32; see signal.py
    entropy: jax.Array  # f32
    alive: jax.Array  # bool; a prefix of each row
    stop: jax.Array  # bool; the token is a stop token
    closes: jax.Array  # bool; a step ends with this token


class ClosedSteps(NamedTuple):
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
    row=None, rules: MonitorSpec = PAPER, discarded=0, discard_limit: int | None = None, may_discard_all=True,
):  # fmt: skip
    """Walk over the columns of slots whose logs hold log_length i32[B] entries; judge every step that ends.

    may_stray bool[B]: slots in which a stray step is a breach; the walk of a slot ends there, and a stop token behind
    the breaching step is not accepted. Without `judged` (bool), steps are entered and none strays. The step table is
    the rows' (see rollout/rows.py). discarded i32[B]: tokens of the logs that rewinds have discarded, discard_limit
    at most (None: any number); may_discard_all: a rewind may discard a whole completion (target root), not its last
    step alone. Returns (open step, step table, accepted bool[B,C], breach bool[B]).
    """

    def walk(carry, column):
        open_, past, place, breach = carry
        alive = column.alive & ~breach
        counts = alive & ~column.stop
        fresh = counts & (open_.tokens == 0)
        summed = counts & ~fresh if rules.first_token_certain else counts
        open_ = open_.replace(
            total=open_.total + jnp.where(summed, column.signal, 0.0),
            tokens=open_.tokens + counts,
            entropy=jnp.where(fresh, column.entropy, open_.entropy),
        )
        close = alive & (column.closes | column.stop) & (open_.tokens > 0)
        bar = past.bar(eps0, rules) if rules.running_mean else safety_boundary(open_.entropy, eps0, theta)
        ended = _end(open_, close, place + counts, bar, judged, rules)
        past = past.after(ended)
        breached = ended.stray & may_stray & (past.streak >= rules.patience)
        if discard_limit is not None:  # what a rewind of the step that ended would discard at most
            loss = ended.end - (discarded if may_discard_all else ended.start)
            breached &= loss <= discard_limit - discarded
        breach = breach | breached
        accepted = alive & ~(column.stop & breach)
        open_ = open_.replace(total=jnp.where(close, 0.0, open_.total), tokens=jnp.where(close, 0, open_.tokens))
        return (open_, past, place + accepted, breach), (accepted, ended)

    past = _read_history(gather_rows(steps, row), open_.first, rules)
    start = (open_, past, log_length, jnp.zeros_like(may_stray))
    (open_, _, _, breach), (accepted, ended) = jax.lax.scan(walk, start, jax.tree.map(jnp.transpose, columns))
    return open_, _append_steps(steps, ClosedSteps(*(x.T for x in ended)), source, row), accepted.T, breach


@flax.struct.dataclass
class StepHistory:
    """What a judgement needs of a text's earlier steps; B rows."""

    total: jax.Array  # f32[B]; sum of the student's values
    count: jax.Array  # i32[B]; of them
    streak: jax.Array  # i32[B]; stray steps in a row, the last one included

    def bar(self, eps0, rules: MonitorSpec) -> jax.Array:
        """eps0 times the running mean; before the first step nothing strays."""
        never = NO_BOUNDARY if rules.alarm_is_high else -NO_BOUNDARY
        return jnp.where(self.count > 0, eps0 * self.total / jnp.maximum(self.count, 1), never)

    def after(self, ended: ClosedSteps) -> "StepHistory":
        """With the steps that ended in a column."""
        return StepHistory(
            self.total + jnp.where(ended.close, ended.value, 0.0),
            self.count + ended.close,
            jnp.where(ended.close, jnp.where(ended.stray, self.streak + 1, 0), self.streak),
        )


def _read_history(steps: StepTable, first: jax.Array, rules: MonitorSpec) -> StepHistory:
    """Read from the table; what the rules don't ask for is left at zero."""
    zero = jnp.zeros_like(steps.count)
    found = StepHistory(zero.astype(jnp.float32), zero, zero)
    index = jnp.arange(steps.value.shape[1])[None]
    entered = index < steps.count[:, None]
    if rules.running_mean:
        mine = entered & (steps.source == Source.STUDENT) & (steps.discarded_by == KEPT)
        total = jnp.sum(jnp.where(mine, steps.value, 0.0), axis=1)
        found = found.replace(total=total, count=jnp.sum(mine, axis=1, dtype=jnp.int32))
    if rules.patience > 1:
        safe = jnp.max(jnp.where(entered & ~steps.stray, index + 1, 0), axis=1)
        found = found.replace(streak=steps.count - jnp.maximum(safe, first))
    return found


def _end(open_: OpenStep, close, end, bar, judged, rules: MonitorSpec) -> ClosedSteps:
    """The open step held against its boundary bar f32[B], in the slots where it closes before log place end i32[B]."""
    value = open_.total / jnp.maximum(open_.tokens, 1)
    value = jnp.exp(value) if rules.exponential else value
    return ClosedSteps(
        close, end - open_.tokens, end, value, open_.entropy, bar, close & rules.strays(value, bar) & judged
    )


def _append_steps(steps: StepTable, ended: ClosedSteps, source, row) -> StepTable:
    """The step table with the ended steps appended to the slots' rows; it needs C spare entries."""
    count = gather_rows(steps.count, row)

    def put(table, block):
        return scatter_windows(table, row, count, compact_left(ended.close, block))

    names = ("start", "end", "value", "entropy", "boundary", "stray")
    return steps.replace(
        **{name: put(getattr(steps, name), getattr(ended, name)) for name in names},
        source=scatter_windows(steps.source, row, count, jnp.full_like(ended.start, source)),
        count=scatter_rows(steps.count, row, count + jnp.sum(ended.close, axis=1, dtype=jnp.int32)),
    )


def find_root(steps: StepTable, first: jax.Array, target: str, rules: MonitorSpec = PAPER) -> jax.Array:
    """The root step i32[B] of a breach at the last entry of the table (eq. 8-9).

    It is the step k with the steepest fall V_k - V_{k-1} (a rise, where the alarm is high) among those whose
    predecessor was safe; the first index wins a tie. Steps before `first` i32[B] (before the last hand-back) are out
    of question; where no step qualifies, and for target 'breach', it is the breaching step itself.
    """
    last = steps.count - 1
    if target == "breach":
        return last
    index = jnp.arange(steps.value.shape[1])[None]
    fall = steps.value - jnp.roll(steps.value, 1, axis=1)
    fall = -fall if rules.alarm_is_high else fall
    safe_before = jnp.roll(~rules.strays(steps.value, steps.boundary), 1, axis=1)
    candidate = safe_before & (index >= 1) & (index >= first[:, None]) & (index <= last[:, None])
    root = jnp.argmin(jnp.where(candidate, fall, jnp.inf), axis=1).astype(jnp.int32)
    return jnp.where(jnp.any(candidate, axis=1), root, last)
