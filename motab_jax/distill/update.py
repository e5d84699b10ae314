"""The update: one jitted, donated, sharded function from a batch of targets to the next training state."""

import flax.struct
import jax
import jax.numpy as jnp
import optax

from motab_jax.distill.objective import NEEDS_TEACHER, Objective, batch_loss, weights_of
from motab_jax.distill.optimizer import widen
from motab_jax.distill.targets import KINDS, TargetBatch
from motab_jax.models.architecture import ModelConfig
from motab_jax.models.transformer import Model, Params


@flax.struct.dataclass
class TrainState:
    """Everything a step changes."""

    step: jax.Array  # i32[]; updates asked for, the skipped ones included
    params: Params  # float32 or bfloat16
    opt_state: optax.OptState  # float32
    skipped: jax.Array  # i32[]; non-finite updates so far
    skipped_in_a_row: jax.Array  # i32[]


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """A fresh state; the optimizer's moments are float32."""
    # One array a counter: a buffer cannot be donated twice.
    step, skipped, in_a_row = (jnp.array(0, jnp.int32) for _ in range(3))
    return TrainState(step, params, optimizer.init(widen(params)), skipped, in_a_row)


def head_of(teacher: Model, objective: Objective) -> Model | None:
    """The part of the teacher that the loss needs: its output head, or nothing at all."""
    if not any(loss.name in NEEDS_TEACHER for loss in objective.losses().values()):
        return None
    name = "head" if "head" in teacher.params else "embed"
    return Model({name: teacher.params[name]}, teacher.config)


def make_update(
    config: ModelConfig, optimizer: optax.GradientTransformation, objective: Objective, *, accumulate: int = 1
):
    """The pure function update(state, teacher_head, batch) -> (state, metrics); jit it with `donate_argnums=0`.

    The B rows are cut into `accumulate` micro-batches whose gradients add up to the whole batch's. A loss or gradient
    that isn't finite leaves parameters and moments as they were and is counted.
    """

    def update(state: TrainState, teacher: Model | None, batch: TargetBatch):
        weight = weights_of(batch.kinds, objective)

        def loss_of(params, part):
            rows, weight = part
            return batch_loss(params, config, teacher, rows, weight, objective)

        grads, loss, per_kind = _accumulate(loss_of, state.params, (batch, weight), accumulate)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        params, opt_state = _apply(optimizer, state, grads, finite)
        bad = (~finite).astype(jnp.int32)
        state = TrainState(state.step + 1, params, opt_state, state.skipped + bad, (state.skipped_in_a_row + 1) * bad)
        return state, _metrics(loss, norm, per_kind, batch, state)

    return update


def _accumulate(loss_of, params: Params, parts, count: int):
    """Sum gradients (float32), losses and per-kind sums over `count` micro-batches of interleaved rows."""
    split = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0), parts)

    def add(total, part):
        (loss, per_kind), grads = jax.value_and_grad(loss_of, has_aux=True)(params, part)
        return jax.tree.map(jnp.add, total, (widen(grads), loss, per_kind)), None

    zero = (jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params), jnp.float32(0), jnp.zeros((len(KINDS),)))
    (grads, loss, per_kind), _ = jax.lax.scan(add, zero, split)
    return grads, loss, per_kind


def _apply(optimizer, state: TrainState, grads, finite):
    """The next parameters and optimizer state, or the old ones where the gradient isn't finite."""
    wide = widen(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, wide)
    params = jax.tree.map(lambda w, u, old: (w + u).astype(old.dtype), wide, updates, state.params)

    def choose(new, old):
        return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

    return choose(params, state.params), choose(opt_state, state.opt_state)


def _metrics(loss, norm, per_kind, batch: TargetBatch, state: TrainState) -> dict[str, jax.Array]:
    metrics = {"loss": loss, "grad_norm": norm, "skipped": state.skipped, "skipped_in_a_row": state.skipped_in_a_row}
    for code, name in enumerate(KINDS[1:], start=1):
        count = jnp.sum(batch.kinds == code)
        metrics[f"tokens/{name}"] = count
        metrics[f"loss/{name}"] = per_kind[code] / jnp.maximum(count, 1)
    return metrics
