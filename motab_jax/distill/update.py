"""The update: one jitted, donated, sharded function from a batch of targets to the next training state.

Left out: the targets (targets.py), which the run's program builds first.
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Float32, Int

from motab_jax.distill.heads import head_params
from motab_jax.distill.objective import Objective, flatten_groups, objective_loss_sums, token_weights, tokens_per_chunk
from motab_jax.distill.optimizer import to_float32
from motab_jax.distill.packing import gather_bins, pack
from motab_jax.distill.targets import LOSS_KINDS, TargetBatch, TokenKind
from motab_jax.models.architecture import ModelConfig
from motab_jax.models.transformer import Model, Params, encode, weight_specs
from motab_jax.runtime.mesh import batch_sharding, layout_shardings, platform_of

# Columns of a micro-batch on each device: enough of them to use it well, few enough to leave few bins empty.
MICRO_TOKENS = {"cpu": 640}
MICRO_TOKENS_ELSEWHERE = 8192
# Columns of a row, up to which a bin is two rows wide: fewer columns stay empty, and the attention to masked columns
# is cheap in short rows.
TWO_ROWS_BELOW = 512


class TrainState(flax.struct.PyTreeNode):
    """The training state: all that an update changes."""

    step: Int[Array, ""]  # updates so far, the skipped ones included
    params: Params  # float32 or bfloat16
    opt_state: optax.OptState  # float32
    skipped: Int[Array, ""]  # non-finite updates so far
    skipped_in_a_row: Int[Array, ""]


class Totals(flax.struct.PyTreeNode):
    """Sums over micro-batches; U kinds of tokens."""

    grads: Params  # float32
    loss: Float32[Array, ""]
    per_kind: Float32[Array, "U"]  # unweighted losses by TokenKind


Gradient = Callable[[Params, Model | None, TargetBatch], tuple[Totals, Float[Array, ""]]]
Update = Callable[[TrainState, Model | None, TargetBatch], tuple[TrainState, dict[str, Array]]]


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """A fresh state; the optimizer's moments are float32."""
    # One array a counter: a buffer cannot be donated twice.
    step, skipped, in_a_row = (jnp.array(0, jnp.int32) for _ in range(3))
    return TrainState(step, params, optimizer.init(to_float32(params)), skipped, in_a_row)


def select_teacher_head(teacher: Model | None, objective: Objective) -> Model | None:
    """The part of the teacher that the loss needs: its output head, or None if no loss compares with the teacher."""
    if not any(loss.needs_teacher or loss.needs_logprob for loss in objective.losses().values()):
        return None
    if teacher is None:
        raise ValueError("the loss compares with a teacher, and there is none")
    return Model(head_params(teacher.params), teacher.config)


def make_update(
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    objective: Objective,
    *,
    accumulate: int = 1,
    remat: str = "none",
    dtype: str | None = None,
    groups: int = 1,
    mesh: Mesh | None = None,
    micro_tokens: int | None = None,
) -> Update:
    """The pure function update(state, teacher_head, batch) -> (state, metrics); jit it with `donate_argnums=0`.

    A loss or gradient that isn't finite leaves parameters and moments as they were and is counted.

    Args:
      config: the student's architecture.
      optimizer: from `make_optimizer`, or any other.
      objective: the losses.
      accumulate: this and all that follow are arguments of `make_gradient`.
      remat: what the backward pass recomputes.
      dtype: of weights and activations in both passes.
      groups: shards of the batch's rows.
      mesh: the devices.
      micro_tokens: columns of a micro-batch on each device.

    Returns:
      The function; its metrics are the loss, the gradient's norm, tokens and mean loss by kind, the skipped updates,
      and the share of padding.
    """
    gradient = make_gradient(
        config, objective, accumulate=accumulate, remat=remat, dtype=dtype, groups=groups, mesh=mesh,
        micro_tokens=micro_tokens,
    )  # fmt: skip

    def update(state: TrainState, teacher: Model | None, batch: TargetBatch) -> tuple[TrainState, dict[str, Array]]:
        total, padding = gradient(state.params, teacher, batch)
        norm = optax.tree.norm(total.grads)
        finite = jnp.isfinite(total.loss) & jnp.isfinite(norm)
        params, opt_state = _apply_gradient(optimizer, state, total.grads, finite)
        bad = (~finite).astype(jnp.int32)
        state = TrainState(state.step + 1, params, opt_state, state.skipped + bad, (state.skipped_in_a_row + 1) * bad)
        return state, {**_metrics(total, norm, batch, state), "padding": padding}

    return update


def make_gradient(
    config: ModelConfig,
    objective: Objective,
    *,
    accumulate: int,
    remat: str,
    groups: int,
    mesh: Mesh | None,
    dtype: str | None = None,
    micro_tokens: int | None = None,
) -> Gradient:
    """The pure function gradient(params, teacher_head, batch) -> (Totals, share of padding in the bins).

    The N rows are packed into bins, and the bins in use are computed a micro-batch at a time; the micro-batches'
    gradients are summed.

    Args:
      config: the student's architecture.
      objective: the losses.
      accumulate: a micro-batch has at most N / accumulate rows; the last may have bins that hold nothing.
      remat: what the backward pass recomputes of each layer: see `encode`.
      groups: shards of the batch's rows (data * fsdp), each packed on its own. With a mesh they stay on their
          devices and the weights are gathered there.
      mesh: the devices that it is compiled for. None: one device of the default backend.
      dtype: of weights and activations in both passes. None: the parameters'.
      micro_tokens: columns of a micro-batch on each device. None: MICRO_TOKENS of the platform.

    Returns:
      The function.
    """
    platform, shards = jax.default_backend(), 1
    if mesh is not None:
        platform, shards = platform_of(mesh), mesh.shape["tensor"]
    chunk_tokens = tokens_per_chunk(-(-config.vocab_size // shards), platform)
    micro_tokens = micro_tokens or MICRO_TOKENS.get(platform, MICRO_TOKENS_ELSEWHERE)

    def gradient(params: Params, teacher: Model | None, batch: TargetBatch) -> tuple[Totals, Float[Array, ""]]:
        params = jax.tree.map(lambda x: x.astype(dtype or x.dtype), params)
        rows, row_width = batch.tokens.shape
        bins, rows_per_bin = micro_batch_shape(rows // groups // accumulate, row_width, micro_tokens)
        max_sequence_columns = row_width if platform == "cpu" else None  # measured on CPUs only
        weight = token_weights(batch.kinds, objective)
        trained = jnp.any(weight > 0, axis=1)
        positions, trained = (x.reshape(groups, -1, *x.shape[1:]) for x in (batch.positions, trained))
        packing = pack(positions, trained, bins, rows_per_bin=rows_per_bin)
        batch, weight = flatten_groups((batch, weight), groups)

        def add_micro_batch(number, total: Totals) -> Totals:
            index = jax.lax.dynamic_slice_in_dim(packing.index, number * bins, bins, axis=1)
            micro, micro_weight, segments = gather_bins(batch, weight, index, row_width)
            micro = _replicate_teacher_hidden(micro, mesh)
            width = segments.shape[-1]
            tokens, positions, segments = (x.reshape(-1, width) for x in (micro.tokens, micro.positions, segments))

            def body(params: Params) -> Array:
                hidden, _ = encode(
                    params, config, tokens, positions, segments=segments, max_sequence_columns=max_sequence_columns,
                    remat=remat, constrain=_column_constraint(width, mesh),
                )  # fmt: skip
                return hidden if mesh is None else jax.lax.with_sharding_constraint(hidden, batch_sharding(mesh))

            hidden, pullback = jax.vjp(body, params)
            head = _replicate_head(head_params(params), config, mesh)
            [name] = head
            head_total = total.grads[name]
            # One group's share is added to the total at once; several stay on their devices until all chunks are done.
            d_head = head_total[None] if groups == 1 else jnp.zeros((groups, *head[name].shape), jnp.float32)
            grouped = flatten_groups(hidden, groups)
            sums = objective_loss_sums(
                config, objective, chunk_tokens, head, grouped, teacher, micro, micro_weight, d_head
            )
            assert sums.d_head is not None and sums.d_hidden is not None
            d_head = sums.d_head[0] if groups == 1 else head_total + jnp.sum(sums.d_head, axis=0)
            [grads] = pullback(sums.d_hidden.reshape(hidden.shape))
            grads = jax.tree.map(jnp.add, {**total.grads, name: d_head}, to_float32(grads))
            return Totals(grads, total.loss + jnp.sum(sums.loss), total.per_kind + jnp.sum(sums.per_kind, axis=0))

        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params)
        total = Totals(zeros, jnp.float32(0.0), jnp.zeros((len(TokenKind),)))
        micro_batches = -(-jnp.max(packing.bins_used) // bins)
        return jax.lax.fori_loop(0, micro_batches, add_micro_batch, total), packing.padding

    return gradient


def micro_batch_shape(rows: int, row_width: int, micro_tokens: int) -> tuple[int, int]:
    """Bins of a micro-batch on each device, and the width of a bin in rows.

    >>> micro_batch_shape(64, 144, 640), micro_batch_shape(16, 4096, 8192)
    ((2, 2), (2, 1))

    Args:
      rows: the most rows whose columns a micro-batch may have.
      row_width: columns of a row.
      micro_tokens: the most columns of a micro-batch of more than one bin.
    """
    rows_per_bin = 2 if row_width <= TWO_ROWS_BELOW and rows >= 2 else 1
    return max(1, min(micro_tokens // (rows_per_bin * row_width), rows // rows_per_bin)), rows_per_bin


def _replicate_teacher_hidden(batch: TargetBatch, mesh: Mesh | None) -> TargetBatch:
    """A micro-batch with the teacher's states replicated over `tensor`.

    In the batch they may be sharded over it; the compiler would then gather the head's weights instead of the states.
    """
    if mesh is None or batch.teacher_hidden is None:
        return batch
    hidden = jax.lax.with_sharding_constraint(batch.teacher_hidden, batch_sharding(mesh))
    return batch.replace(teacher_hidden=hidden)


def _column_constraint(width: int, mesh: Mesh | None) -> Callable[[Array], Array] | None:
    """Between layers, where no column depends on another, the columns are sharded over `tensor` if they divide.

    Each device then keeps an equal share for the backward pass (arXiv 2205.05198, section 4.2.2).
    """
    if mesh is None or width % mesh.shape["tensor"]:
        return None
    sharding = NamedSharding(mesh, PartitionSpec(*batch_sharding(mesh).spec, "tensor"))
    return lambda x: jax.lax.with_sharding_constraint(x, sharding)


def _replicate_head(head: Params, config: ModelConfig, mesh: Mesh | None) -> Params:
    """The head in the layout `serve`, once for all chunks: weights are gathered, tokens stay on their devices."""
    if mesh is None:
        return head
    [name] = head
    return jax.lax.with_sharding_constraint(
        head, layout_shardings(mesh, {name: weight_specs(config)[name].axes}, "serve", head)
    )


def _apply_gradient(
    optimizer: optax.GradientTransformation, state: TrainState, grads: Params, finite: Bool[Array, ""]
) -> tuple[Params, optax.OptState]:
    """The next parameters and optimizer state, or the old ones where the gradient isn't finite."""
    exact = to_float32(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, exact)
    params = jax.tree.map(lambda w, u, old: (w + u).astype(old.dtype), exact, updates, state.params)

    def choose(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

    return choose(params, state.params), choose(opt_state, state.opt_state)


def _metrics(total: Totals, norm: Float[Array, ""], batch: TargetBatch, state: TrainState) -> dict[str, Array]:
    counts = {"skipped": state.skipped, "skipped_in_a_row": state.skipped_in_a_row}
    metrics = {"loss": total.loss, "grad_norm": norm, **counts}
    for kind in LOSS_KINDS:
        count = jnp.sum(batch.kinds == kind)
        metrics[f"tokens/{kind.word}"] = count
        metrics[f"loss/{kind.word}"] = total.per_kind[kind] / jnp.maximum(count, 1)
    return metrics
