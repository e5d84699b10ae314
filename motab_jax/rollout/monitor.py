"""The safety monitor: step values, the adaptive boundary, and the root step (MOTAB, eq. 5-9).

`score` reads the teacher's opinion of C columns, `observe` walks over them token by token and judges every step that
ends, `find_root` says where the trouble began. Numbers are natural logarithms (nats), at temperature 1.
"""

import flax.struct
import jax
import jax.numpy as jnp

from motab_jax.models.transformer import Model, unembed
from motab_jax.rollout.trajectory import StepTable

SCORE_ELEMENTS = 1 << 24


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


def entropy_of(logits: jax.Array, top_k: int = 0) -> jax.Array:
    """Entropy [...] in nats of logits [...,V]; top_k > 0: of the renormalised k likeliest tokens (eq. 6)."""
    if 0 < top_k < logits.shape[-1]:
        logits = jax.lax.top_k(logits, top_k)[0]
    logprobs = jax.nn.log_softmax(logits, axis=-1)
    return -jnp.sum(jnp.exp(logprobs) * logprobs, axis=-1)


def score(teacher: Model, hidden, tokens, *, vocab_size: int, entropy_top_k: int) -> tuple[jax.Array, jax.Array]:
    """log p_T(token) and the entropy of the distribution it came from, both f32[B,C].

    hidden [B,C,D] are the teacher's final states that predict tokens i32[B,C]. Columns are taken a few at a time, so
    that logits [B,C,V] are never held whole.
    """

    def column(args):
        state, token = args
        logits = unembed(teacher.params, teacher.config, state, vocab_size)
        logprobs = jax.nn.log_softmax(logits, axis=-1)
        # A token that the teacher's tokenizer lacks cannot occur: both models sample below vocab_size.
        return jnp.take_along_axis(logprobs, token[:, None], axis=-1)[:, 0], entropy_of(logits, entropy_top_k)

    rows, columns = tokens.shape
    batch = max(1, min(columns, SCORE_ELEMENTS // (rows * vocab_size)))
    logprob, entropy = jax.lax.map(column, (jnp.swapaxes(hidden, 0, 1), tokens.T), batch_size=batch)
    return logprob.T, entropy.T


@flax.struct.dataclass
class Columns:
    """C columns to be judged; all [B,C]."""

    logprob: jax.Array  # f32
    entropy: jax.Array  # f32
    alive: jax.Array  # bool; a prefix of each row
    stop: jax.Array  # bool; the token is a stop token
    closes: jax.Array  # bool; a step ends with this token


def observe(
    open_: OpenStep, steps: StepTable, columns: Columns, log_length, may_stray, *, eps0, theta, source: int, judged=True
):
    """Walk over the columns of rows whose log holds log_length i32[B] entries; judge every step that ends.

    may_stray bool[B]: rows in which a stray step is a breach; the walk of a row ends there, and a stop token behind
    the breaching step is not accepted. Without `judged`, steps are entered and none strays.
    Returns (open step, step table, accepted bool[B,C], breach bool[B]).
    """

    def walk(carry, column):
        open_, steps, place, breach = carry
        alive = column.alive & ~breach
        counts = alive & ~column.stop
        fresh = counts & (open_.tokens == 0)
        open_ = open_.replace(
            log_likelihood=open_.log_likelihood + jnp.where(counts, column.logprob, 0.0),
            tokens=open_.tokens + counts,
            entropy=jnp.where(fresh, column.entropy, open_.entropy),
        )
        close = alive & (column.closes | column.stop) & (open_.tokens > 0)
        bar = boundary(open_.entropy, eps0, theta)
        steps, stray = _close(steps, open_, close, place + counts, bar, source, judged)
        breach = breach | (stray & may_stray)
        accepted = alive & ~(column.stop & breach)
        zero = jnp.where(close, 0, 1)
        open_ = open_.replace(log_likelihood=open_.log_likelihood * zero, tokens=open_.tokens * zero)
        return (open_, steps, place + accepted, breach), accepted

    start = (open_, steps, log_length, jnp.zeros_like(may_stray))
    (open_, steps, _, breach), accepted = jax.lax.scan(walk, start, jax.tree.map(jnp.transpose, columns))
    return open_, steps, accepted.T, breach


def _close(
    steps: StepTable, open_: OpenStep, close, end, bar, source: int, judged: bool
) -> tuple[StepTable, jax.Array]:
    """Enter the steps that close, of rows close bool[B], ending before log place end i32[B]; say which strayed.

    bar f32[B]: the boundary that their values are held against.
    """
    value = jnp.exp(open_.log_likelihood / jnp.maximum(open_.tokens, 1))
    stray = close & (value < bar) & judged
    here = close[:, None] & (jnp.arange(steps.start.shape[1])[None] == steps.count[:, None])

    def put(table, new):
        return jnp.where(here, new[:, None], table)

    steps = steps.replace(
        start=put(steps.start, end - open_.tokens),
        end=put(steps.end, end),
        source=jnp.where(here, source, steps.source),
        value=put(steps.value, value),
        entropy=put(steps.entropy, open_.entropy),
        boundary=put(steps.boundary, bar),
        stray=put(steps.stray, stray),
        count=steps.count + close,
    )
    return steps, stray


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
