"""The update: one jitted, donated, sharded function from a batch of targets to the next training state."""

import functools

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from motab_jax.distill import heads
from motab_jax.distill.objective import Objective, flatten_groups, objective_loss_sums, token_weights, tokens_per_chunk
from motab_jax.distill.optimizer import to_float32
from motab_jax.distill.packing import gather, pack
from motab_jax.distill.targets import KINDS, TargetBatch
from motab_jax.models.architecture import ModelConfig
from motab_jax.models.transformer import Model, Params, encode, weight_specs
from motab_jax.runtime.mesh import batch_sharding, layout_shardings, platform_of

# Columns of a micro-batch on each device: enough of them to use it well, few enough to leave few bins empty.
MICRO_TOKENS = {"cpu": 640}
MICRO_TOKENS_ELSEWHERE = 8192
WIDE_BELOW = 512  # columns; bins of two rows' width leave less empty, and short texts attend to few columns too many


@flax.struct.dataclass
class TrainState:
    """Everything a step changes."""

    step: jax.Array  # i32[]; updates asked for, the skipped ones included
    params: Params  # float32 or bfloat16
    opt_state: optax.OptState  # float32
    skipped: jax.Array  # i32[]; non-finite updates so far
    skipped_in_a_row: jax.Array  # i32[]


@flax.struct.dataclass
class Totals:
    """Sums over micro-batches."""

    grads: Params  # float32
    loss: jax.Array  # f32[]
    per_kind: jax.Array  # f32[5]; unweighted losses by kind


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """A fresh state; the optimizer's moments are float32."""
    # One array a counter: a buffer cannot be donated twice.
    step, skipped, in_a_row = (jnp.array(0, jnp.int32) for _ in range(3))
    return TrainState(step, params, optimizer.init(to_float32(params)), skipped, in_a_row)


def select_teacher_head(teacher: Model | None, objective: Objective) -> Model | None:
    """The part of the teacher that the loss needs: its output head, or nothing at all."""
    if not any(loss.needs_teacher or loss.needs_logprob for loss in objective.losses().values()):
        return None
    if teacher is None:
        raise ValueError("the loss compares with a teacher, and there is none")
    return Model(heads.head_params(teacher.params), teacher.config)


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
):
    """The pure function update(state, teacher_head, batch) -> (state, metrics); jit it with `donate_argnums=0`.

    Options as of `make_gradient`. A loss or gradient that isn't finite leaves parameters and moments as they were and
    is counted.
    """
    gradient = make_gradient(
        config, objective, accumulate=accumulate, remat=remat, dtype=dtype, groups=groups, mesh=mesh
    )

    def update(state: TrainState, teacher: Model | None, batch: TargetBatch):
        total, padding = gradient(state.params, teacher, batch)
        norm = optax.tree.norm(total.grads)
        finite = jnp.isfinite(total.loss) & jnp.isfinite(norm)
        params, opt_state = _apply(optimizer, state, total.grads, finite)
        bad = (~finite).astype(jnp.int32)
        state = TrainState(state.step + 1, params, opt_state, state.skipped + bad, (state.skipped_in_a_row + 1) * bad)
        return state, {**_metrics(total, norm, batch, state), "padding": padding}

    return update


def make_gradient(
    config: ModelConfig, objective: Objective, *, accumulate: int, remat: str, groups: int, mesh: Mesh | None,
    dtype: str | None = None,
):  # fmt: skip
    """The pure function gradient(params, teacher_head, batch) -> (Totals, share of the bins' cells without text).

    The B rows are packed into bins, and the bins in use are computed a micro-batch at a time, whose gradients add up
    to the whole batch's: at most B / accumulate bins, and the last micro-batch may compute some that hold nothing.
    remat: see `encode`. dtype: of weights and activations in both passes (None: the parameters'). groups: shards of the
    batch's rows (data * fsdp), each packed on its own; with a mesh they stay on their devices, the weights come to
    them, and its devices are what it is compiled for.
    """
    platform, ways = jax.default_backend(), 1
    if mesh is not None:
        platform, ways = platform_of(mesh), mesh.shape["tensor"]
    chunk = tokens_per_chunk(-(-objective.vocab_size // ways), platform)
    score_all = functools.partial(objective_loss_sums, config, objective, chunk)

    def gradient(params: Params, teacher: Model | None, batch: TargetBatch):
        params = jax.tree.map(lambda x: x.astype(dtype or x.dtype), params)
        rows, width = batch.tokens.shape
        bins, wide = micro_batch_shape(rows // groups // accumulate, width, platform)
        max_text_columns = width if platform == "cpu" else None  # measured on CPUs only
        weight = token_weights(batch.kinds, objective)
        trained = jnp.any(weight > 0, axis=1)
        packing = pack(*(x.reshape(groups, -1, *x.shape[1:]) for x in (batch.positions, trained)), bins, wide=wide)
        batch, weight = flatten_groups((batch, weight), groups)

        def micro(number, total: Totals) -> Totals:
            cells = jax.lax.dynamic_slice_in_dim(packing.cells, number * bins, bins, axis=1)
            part = _whole(gather(batch, weight, cells, width), mesh)
            return _add_micro(
                params,
                config,
                score_all,
                teacher,
                total,
                part,
                max_text_columns=max_text_columns,
                remat=remat,
                mesh=mesh,
            )

        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params)
        total = Totals(zeros, jnp.float32(0.0), jnp.zeros((len(KINDS),)))
        return jax.lax.fori_loop(0, -(-jnp.max(packing.used) // bins), micro, total), packing.padding

    return gradient


def micro_batch_shape(rows: int, width: int, platform: str) -> tuple[int, int]:
    """Bins of a micro-batch of at most `rows` rows on each device, and the width of one in rows."""
    wide = 2 if width <= WIDE_BELOW and rows >= 2 else 1
    columns = MICRO_TOKENS.get(platform, MICRO_TOKENS_ELSEWHERE)
    return max(1, min(columns // (wide * width), rows // wide)), wide


def _whole(part, mesh: Mesh | None):
    """A micro-batch with the teacher's states whole on each device of a group; in the batch they may be cut over
    `tensor`, and cut so the compiler would bring the head's weights to them, not them to the weights."""
    batch, *others = part
    if mesh is None or batch.teacher_hidden is None:
        return part
    hidden = jax.lax.with_sharding_constraint(batch.teacher_hidden, batch_sharding(mesh))
    return batch.replace(teacher_hidden=hidden), *others


def _add_micro(
    params: Params,
    config,
    score_all,
    teacher,
    total: Totals,
    part,
    *,
    max_text_columns: int | None,
    remat: str,
    mesh: Mesh | None,
):
    """The totals and those of a micro-batch: bins [G,p,W] of a batch, with their weights and segments."""
    batch, weight, segments = part
    groups, (_, width) = weight.shape[0], segments.shape[1:]
    tokens, positions, texts = (x.reshape(-1, width) for x in (batch.tokens, batch.positions, segments))

    def body(params: Params) -> jax.Array:
        constrain = None if mesh is None or width % mesh.shape["tensor"] else _over_columns(mesh)
        hidden, _ = encode(
            params,
            config,
            tokens,
            positions,
            segments=texts,
            max_text_columns=max_text_columns,
            remat=remat,
            constrain=constrain,
        )
        return hidden if mesh is None else jax.lax.with_sharding_constraint(hidden, batch_sharding(mesh))

    hidden, pullback = jax.vjp(body, params)
    head = _replicate(heads.head_params(params), config, mesh)
    [name] = head
    # One group's share goes on top of the total at once; several stay with their devices until all chunks are done.
    before = total.grads[name][None] if groups == 1 else jnp.zeros((groups, *head[name].shape), jnp.float32)
    scored = score_all(head, *flatten_groups((hidden,), groups), teacher, batch, weight, before)
    d_head = scored.d_head[0] if groups == 1 else total.grads[name] + jnp.sum(scored.d_head, axis=0)
    [grads] = pullback(scored.d_hidden.reshape(hidden.shape))
    grads = jax.tree.map(jnp.add, {**total.grads, name: d_head}, to_float32(grads))
    return Totals(grads, total.loss + jnp.sum(scored.loss), total.per_kind + jnp.sum(scored.per_kind, axis=0))


def _over_columns(mesh: Mesh):
    """Between layers, where nothing looks at other columns, they lie over `tensor`: an equal share of what is kept for
    the backward pass on each device (arXiv 2205.05198, section 4.2.2)."""
    place = NamedSharding(mesh, PartitionSpec(*batch_sharding(mesh).spec, "tensor"))
    return lambda x: jax.lax.with_sharding_constraint(x, place)


def _replicate(head: Params, config: ModelConfig, mesh: Mesh | None) -> Params:
    """The head as in the layout `serve`, once for all chunks: tokens stay where they are, weights come to them."""
    if mesh is None:
        return head
    [name] = head
    return jax.lax.with_sharding_constraint(
        head, layout_shardings(mesh, {name: weight_specs(config)[name].axes}, "serve", head)
    )


def _apply(optimizer, state: TrainState, grads, finite):
    """The next parameters and optimizer state, or the old ones where the gradient isn't finite."""
    wide = to_float32(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, wide)
    params = jax.tree.map(lambda w, u, old: (w + u).astype(old.dtype), wide, updates, state.params)

    def choose(new, old):
        return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

    return choose(params, state.params), choose(opt_state, state.opt_state)


def _metrics(total: Totals, norm, batch: TargetBatch, state: TrainState) -> dict[str, jax.Array]:
    counts = {"skipped": state.skipped, "skipped_in_a_row": state.skipped_in_a_row}
    metrics = {"loss": total.loss, "grad_norm": norm, **counts}
    for code, name in enumerate(KINDS[1:], start=1):
        count = jnp.sum(batch.kinds == code)
        metrics[f"tokens/{name}"] = count
        metrics[f"loss/{name}"] = total.per_kind[code] / jnp.maximum(count, 1)
    return metrics
