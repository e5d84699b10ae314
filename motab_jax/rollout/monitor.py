"""The safety monitor: step values, safety boundary and root step (MOTAB, arXiv 2605.19433, eq. 5-9).

`observe` takes a segment's tokens with the teacher's scores and judges each step that ends there.
`find_root` finds the root step of a breach. Both are written for one row; `observe` is `jax.vmap` over slots.
`MonitorSpec` holds the settings, those of other methods too. Logarithms are natural (nats), at
temperature 1. Left out: the signal (step_signals.py), the rewind (trajectory.py, engine.py).
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, Int32

from motab_jax.data.sources import Source
from motab_jax.rollout.config import MonitorSpec
from motab_jax.rollout.rows import compact_left, gather_rows, scatter_rows, scatter_windows
from motab_jax.rollout.trajectory import KEPT, StepTable

# The absolute value of a boundary that no step value crosses: 1e30 where high values stray, else -1e30. Records and
# metrics leave such boundaries out.
NO_BOUNDARY = 1e30

PAPER = MonitorSpec()
Scalar = Float[Array, ""] | float


class OpenStep(flax.struct.PyTreeNode):
    """The step that each row is in."""

    total: Float32[Array, "*N"]  # sum of the signal so far
    tokens: Int32[Array, "*N"]  # tokens counted so far
    entropy: Float32[Array, "*N"]  # H_k, the teacher's entropy where the step starts
    first: Int32[Array, "*N"]  # entries of the step table below this one are from before the last hand-back


def open_step(rows: int) -> OpenStep:
    """Steps without a token."""
    integer, real = jnp.zeros((rows,), jnp.int32), jnp.zeros((rows,), jnp.float32)
    return OpenStep(real, integer, real, integer)


def safety_boundary(entropy: Float[Array, "*N"], eps0: Scalar, theta: Scalar) -> Float[Array, "*N"]:
    """The boundary eps_k = eps0 exp(-theta H_k) (eq. 7).

    >>> round(float(safety_boundary(jnp.log(4.0), 0.2, 0.5)), 6)
    0.1

    Args:
      entropy: H_k, in nats.
      eps0: the boundary at entropy 0.
      theta: how fast it falls, per nat.

    Returns:
      The boundary of each step.
    """
    return eps0 * jnp.exp(-theta * entropy)


def next_boundary(
    eps0: Float[Array, ""], steps: StepTable, *, rate: float, pace: float, alarm_is_high: bool
) -> Float[Array, ""]:
    """The eps0 of the next batch, such that in the long run a share `rate` of the student's steps strays.

    eps0' = (1 - pace) eps0 + pace q, q the quantile of this batch's student steps that lets a share `rate` stray.

    >>> from motab_jax.rollout.trajectory import empty_steps
    >>> steps = empty_steps(rows=1, entries=5).replace(
    ...     value=jnp.array([[0.1, 0.2, 0.3, 0.4, 0.5]]),
    ...     source=jnp.full((1, 5), int(Source.STUDENT)),
    ...     count=jnp.array([5]),
    ... )
    >>> round(float(next_boundary(jnp.float32(0.4), steps, rate=0.25, pace=0.5, alarm_is_high=False)), 6)
    0.3

    Args:
      eps0: of this batch.
      steps: of this batch's rows [N, M]; discarded steps count.
      rate: the share of steps that is to stray.
      pace: the share of the way to the quantile that eps0 moves.
      alarm_is_high: a step strays above its boundary.

    Returns:
      The new eps0; the old one where the batch has no student step with a value.
    """
    entered = jnp.arange(steps.value.shape[1])[None] < steps.count[:, None]
    by_student = entered & (steps.source == Source.STUDENT)
    quantile = jnp.nanquantile(jnp.where(by_student, steps.value, jnp.nan), 1.0 - rate if alarm_is_high else rate)
    return jnp.where(jnp.isnan(quantile), eps0, (1.0 - pace) * eps0 + pace * quantile)


class Columns(flax.struct.PyTreeNode):
    """The tokens to be judged: [B, C] of B slots, [C] of one, [] of one column."""

    signal: Float32[Array, "*N"]  # see step_signals.py
    entropy: Float32[Array, "*N"]
    alive: Bool[Array, "*N"]  # the column holds a new token; a prefix of each row
    stop: Bool[Array, "*N"]  # the token is a stop token
    closes: Bool[Array, "*N"]  # a step ends with this token


class ClosedSteps(flax.struct.PyTreeNode):
    """The step that ended with each column, where one did."""

    close: Bool[Array, "*N"]  # a step ended here; elsewhere the other fields mean nothing
    start: Int32[Array, "*N"]  # indices into the log: the first token
    end: Int32[Array, "*N"]  # one past the last
    value: Float32[Array, "*N"]
    entropy: Float32[Array, "*N"]
    boundary: Float32[Array, "*N"]
    stray: Bool[Array, "*N"]


def observe(
    open_: OpenStep,
    steps: StepTable,
    columns: Columns,
    log_length: Int[Array, "B"],
    may_stray: Bool[Array, "B"],
    *,
    eps0: Scalar,
    theta: Scalar,
    source: Int[Array, ""] | int,
    judged: Bool[Array, ""] | bool = True,
    row: Int[Array, "B"] | None = None,
    spec: MonitorSpec = PAPER,
    discarded: Int[Array, "B"] | int = 0,
    discard_limit: int | None = None,
    may_discard_all: bool = True,
) -> tuple[OpenStep, StepTable, Bool[Array, "B C"], Bool[Array, "B"]]:
    """Judge every step that ends in a segment, token by token in each slot.

    V_k = exp(mean of the signal over the step's tokens) (eq. 5), H_k the entropy of its first column (eq. 6). A stop
    token ends a step and belongs to none.

    >>> from motab_jax.rollout.trajectory import empty_steps
    >>> signal = jnp.log(jnp.array([[0.5, 0.125, 0.25, 0.01]]))
    >>> yes = jnp.ones((1, 4), bool)
    >>> columns = Columns(signal, jnp.zeros((1, 4)), yes, ~yes, jnp.array([[False, True, False, True]]))
    >>> _, steps, accepted, breach = observe(
    ...     open_step(1), empty_steps(1, 4), columns, jnp.array([0]), jnp.array([True]), eps0=0.2, theta=1.0,
    ...     source=Source.STUDENT,
    ... )
    >>> [(int(steps.start[0, k]), int(steps.end[0, k]), round(float(steps.value[0, k]), 4)) for k in range(2)]
    [(0, 2, 0.25), (2, 4, 0.05)]
    >>> steps.stray[0, :2].tolist(), breach.tolist()
    ([False, True], [True])

    Args:
      open_: the step that each slot is in.
      steps: the step table, of the rows (see rows.py); it needs C spare entries.
      columns: the new tokens, their scores, and where steps end.
      log_length: entries of each slot's log before these tokens.
      may_stray: slots in which a stray may be a breach. Nothing after the breaching step is accepted, nor is the stop
        token that ended it.
      eps0: see `safety_boundary`.
      theta: likewise.
      source: whose tokens they are, a `Source`.
      judged: False: the steps are entered and none strays.
      row: the row of each slot; None: slots are rows.
      spec: how steps are judged.
      discarded: how many tokens of each slot's log earlier rewinds discarded.
      discard_limit: tokens of a row that its rewinds may discard in all; None: any number.
      may_discard_all: a rewind may discard the whole completion (target root), not only its last step.

    Returns:
      The open step, the step table, the accepted tokens, and the slots with a breach (its step is the last entry).
    """
    one_row = functools.partial(
        _observe_row, eps0=eps0, theta=theta, judged=judged, spec=spec, discard_limit=discard_limit,
        may_discard_all=may_discard_all,
    )  # fmt: skip
    discarded = jnp.broadcast_to(jnp.asarray(discarded), log_length.shape)
    open_, closed, accepted, breach = jax.vmap(one_row)(
        open_, gather_rows(steps, row), columns, log_length, may_stray, discarded
    )
    return open_, _append_steps(steps, closed, source, row), accepted, breach


def _observe_row(
    open_: OpenStep,
    steps: StepTable,
    columns: Columns,
    log_length,
    may_stray,
    discarded,
    *,
    eps0,
    theta,
    judged,
    spec: MonitorSpec,
    discard_limit: int | None,
    may_discard_all: bool,
) -> tuple[OpenStep, ClosedSteps, Bool[Array, "C"], Bool[Array, ""]]:
    """`observe` for one row; its closed steps [C] are not in the table yet."""

    def observe_token(carry, column: Columns):
        open_, history, index, breach = carry
        alive = column.alive & ~breach
        counts = alive & ~column.stop
        fresh = counts & (open_.tokens == 0)
        summed = counts & ~fresh if spec.first_token_certain else counts
        open_ = open_.replace(
            total=open_.total + jnp.where(summed, column.signal, 0.0),
            tokens=open_.tokens + counts,
            entropy=jnp.where(fresh, column.entropy, open_.entropy),
        )
        close = alive & (column.closes | column.stop) & (open_.tokens > 0)
        boundary = history.boundary(eps0, spec) if spec.running_mean else safety_boundary(open_.entropy, eps0, theta)
        closed = _close(open_, close, index + counts, boundary, judged, spec)
        history = history.append(closed)
        breached = closed.stray & may_stray & (history.streak >= spec.patience)
        if discard_limit is not None:
            discardable = closed.end - (discarded if may_discard_all else closed.start)  # that its rewind could discard
            breached &= discardable <= discard_limit - discarded
        breach = breach | breached
        accepted = alive & ~(column.stop & breach)
        open_ = open_.replace(total=jnp.where(close, 0.0, open_.total), tokens=jnp.where(close, 0, open_.tokens))
        return (open_, history, index + accepted, breach), (accepted, closed)

    start = (open_, _read_history(steps, open_.first, spec), log_length, jnp.zeros_like(may_stray))
    (open_, _, _, breach), (accepted, closed) = jax.lax.scan(observe_token, start, columns)
    return open_, closed, accepted, breach


class StepHistory(flax.struct.PyTreeNode):
    """What judging a step needs of the row's earlier steps."""

    total: Float32[Array, ""]  # sum of the student's step values
    count: Int32[Array, ""]  # the number of these steps
    streak: Int32[Array, ""]  # strays in a row, the last step included

    def boundary(self, eps0, spec: MonitorSpec) -> Float[Array, ""]:
        """eps0 times the running mean; before the first step nothing strays."""
        nothing_strays = NO_BOUNDARY if spec.alarm_is_high else -NO_BOUNDARY
        return jnp.where(self.count > 0, eps0 * self.total / jnp.maximum(self.count, 1), nothing_strays)

    def append(self, closed: ClosedSteps) -> "StepHistory":
        """With the step that ended in a column, if one did."""
        return StepHistory(
            self.total + jnp.where(closed.close, closed.value, 0.0),
            self.count + closed.close,
            jnp.where(closed.close, jnp.where(closed.stray, self.streak + 1, 0), self.streak),
        )


def _read_history(steps: StepTable, first: Int[Array, ""], spec: MonitorSpec) -> StepHistory:
    """The history in one row's step table; what the spec doesn't need is left at zero."""
    zero = jnp.zeros_like(steps.count)
    history = StepHistory(zero.astype(jnp.float32), zero, zero)
    index = jnp.arange(steps.value.shape[0])
    entered = index < steps.count
    if spec.running_mean:
        student_steps = entered & (steps.source == Source.STUDENT) & (steps.discarded_by == KEPT)
        total = jnp.sum(jnp.where(student_steps, steps.value, 0.0))
        history = history.replace(total=total, count=jnp.sum(student_steps, dtype=jnp.int32))
    if spec.patience > 1:
        safe = jnp.max(jnp.where(entered & ~steps.stray, index + 1, 0))
        history = history.replace(streak=steps.count - jnp.maximum(safe, first))
    return history


def _close(open_: OpenStep, close, end, boundary, judged, spec: MonitorSpec) -> ClosedSteps:
    """The open step compared with its boundary, if it closes before log index `end`."""
    value = open_.total / jnp.maximum(open_.tokens, 1)
    value = jnp.exp(value) if spec.exponential else value
    stray = close & spec.strays(value, boundary) & judged
    return ClosedSteps(close, end - open_.tokens, end, value, open_.entropy, boundary, stray)


def _append_steps(steps: StepTable, closed: ClosedSteps, source, row) -> StepTable:
    """The step table with the closed steps [B, C] appended to the slots' rows; it needs C spare entries."""
    count = gather_rows(steps.count, row)

    def append(table, block):
        return scatter_windows(table, row, count, compact_left(closed.close, block))

    names = ("start", "end", "value", "entropy", "boundary", "stray")
    return steps.replace(
        **{name: append(getattr(steps, name), getattr(closed, name)) for name in names},
        source=scatter_windows(steps.source, row, count, jnp.full_like(closed.start, source)),
        count=scatter_rows(steps.count, row, count + jnp.sum(closed.close, axis=1, dtype=jnp.int32)),
    )


def find_root(steps: StepTable, first: Int[Array, ""], target: str, spec: MonitorSpec = PAPER) -> Int32[Array, ""]:
    """The root step of a breach at the last entry of one row's step table (eq. 8-9).

    t* = argmin over first <= k <= t of V_k - V_{k-1}, with step k-1 safe: the steepest fall (the steepest rise, where
    the alarm is high). The first index wins a tie; where no step qualifies, it is the breaching step t itself.

    >>> from motab_jax.rollout.trajectory import empty_steps
    >>> steps = jax.tree.map(lambda x: x[0], empty_steps(rows=1, entries=5))
    >>> steps = steps.replace(count=jnp.int32(4), boundary=jnp.full(5, 0.2))
    >>> int(find_root(steps.replace(value=jnp.array([0.9, 0.8, 0.3, 0.1, 0.0])), jnp.int32(0), "root"))
    2

    Args:
      steps: one row's, [M].
      first: no step below this entry (before the last hand-back) is the root.
      target: root; or breach, for which the root step is the breaching step.
      spec: how the steps were judged.

    Returns:
      The entry of the root step.
    """
    last = steps.count - 1
    if target == "breach":
        return last
    index = jnp.arange(steps.value.shape[0])
    fall = steps.value - jnp.roll(steps.value, 1)
    fall = -fall if spec.alarm_is_high else fall
    safe_before = jnp.roll(~spec.strays(steps.value, steps.boundary), 1)
    candidate = safe_before & (index >= 1) & (index >= first) & (index <= last)
    root = jnp.argmin(jnp.where(candidate, fall, jnp.inf)).astype(jnp.int32)
    return jnp.where(jnp.any(candidate), root, last)
