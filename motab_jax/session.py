"""From a configuration to what the verbs work with: mesh, models, tokenizer, prompts, engine numbers.

Everything that can be wrong about models and data is found here, before any work starts.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from motab_jax.config import Config, UserError
from motab_jax.config.prompts import EvalConfig
from motab_jax.data.prompts import encode_all, has_held_out, load_prompts
from motab_jax.data.records import Prompt
from motab_jax.data.steps import compile_delimiter, compile_window
from motab_jax.data.tokenizer import check_same_tokenizer, decode, load_tokenizer, stop_ids, token_bytes, vocab_size
from motab_jax.models.families import load_places
from motab_jax.models.pretrained import load_pretrained
from motab_jax.models.prune import init_from_teacher
from motab_jax.models.transformer import Model, Params
from motab_jax.relayout import layout, serving, teacher_serving
from motab_jax.rollout import Prompts, RolloutConfig
from motab_jax.rollout.decode import ENDLESS
from motab_jax.rollout.signal import ALARM_IS_HIGH
from motab_jax.runtime.distributed import barrier
from motab_jax.runtime.mesh import check_heads, local_rows, make_mesh, place_rows, platform_of

SHIPPED = Path(__file__).parent / "quickstart"
LOADING = 3600  # seconds that processes wait for each other to download and read the models


@dataclasses.dataclass(frozen=True)
class Session:
    """A run's models and the text rules they share."""

    config: Config
    mesh: Any
    student: Model  # in the update layout
    teacher: Model | None  # in the serve layout; None where nothing asks for it
    tokenizer: Any
    source: str  # folder or hub id that the student's other files come from
    stop: int  # the token that ends a text
    vocab_size: int
    rollout: RolloutConfig
    serving: Callable[[Params], Model]  # jitted

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        return decode(self.tokenizer, tokens)

    def serve(self, params) -> Model:
        """The student in serving form, laid out for generation: new arrays, once a step."""
        return self.serving(params)


@dataclasses.dataclass(frozen=True)
class EncodedPrompts:
    """Prompts with their token ids, and the width that fits all of them."""

    prompts: list[Prompt]
    tokens: list[list[int]]

    @property
    def width(self) -> int:
        """Columns of a prompt batch."""
        return max(len(ids) for ids in self.tokens)

    def batch(self, indices: Sequence[int], row_ids: Sequence[int], mesh) -> Prompts:
        """The prompts of these indices, left-padded, rows over the mesh's batch axes; a process fills in its own."""
        mine = local_rows(mesh, len(indices))
        table, lengths = padded([self.tokens[indices[row]] for row in mine], self.width, left=True)
        numbers = np.array(row_ids, np.int32)[mine]
        part = Prompts(table, lengths, numbers, np.full_like(lengths, ENDLESS))
        return place_rows(mesh, len(indices), part)


def padded(rows: Sequence[Sequence[int]], width: int, *, left: bool) -> tuple[np.ndarray, np.ndarray]:
    """Rows of token ids as a table i32[R,width], zeros on the left or right of each, and their lengths i32[R]."""
    table = np.zeros((len(rows), width), np.int32)
    for row, ids in zip(table, rows, strict=True):
        row[width - len(ids) if left else 0 :][: len(ids)] = ids
    return table, np.array([len(ids) for ids in rows], np.int32)


def open_session(config: Config, *, teacher: bool | None = None) -> Session:
    """Load both models and check that they fit each other, the tokenizer and the mesh.

    teacher: whether its weights are needed; None: as `needs_teacher` says. A teacher that is named and not needed still
    has its say on the tokenizer and the stop tokens, so that all methods end a text alike.
    """
    sizes = config.mesh
    mesh = make_mesh(sizes.data, sizes.fsdp, sizes.tensor, dcn_data=sizes.dcn_data)
    needed = needs_teacher(config) if teacher is None else teacher or config.student.init_from_teacher is not None
    student_path, teacher_path = model_paths(config, teacher=needed)
    tokenizer = load_tokenizer(teacher_path or student_path)
    stops = stop_ids(tokenizer, teacher_path or student_path)
    stop = stops[0]
    if teacher_path not in (None, student_path):
        check_same_tokenizer(load_tokenizer(student_path), tokenizer)
        stops = tuple(sorted({*stops, *stop_ids(tokenizer, student_path)}))
    size = vocab_size(tokenizer)
    master = _load(teacher_path, config.teacher.dtype, mesh) if needed and teacher_path else None
    student = _load_student(config, student_path, master, mesh)
    for role, model, path in (("student", student, student_path), ("teacher", master, teacher_path)):
        if model is not None:
            _check_model(config, role, model, str(path), size)
            check_heads(mesh.shape["tensor"], *model.config.heads, f"the {role}'s ({path})")
    if master is not None:
        master = teacher_serving(mesh, master.config, config)(master.params)
    barrier("the models are loaded", LOADING)
    update = layout(mesh, student.config, "update")
    student = Model(jax.jit(lambda params: params, out_shardings=update)(student.params), student.config)
    return Session(
        config=config,
        mesh=mesh,
        student=student,
        teacher=master,
        tokenizer=tokenizer,
        source=str(student_path),
        stop=stop,
        vocab_size=size,
        rollout=rollout_config(config, token_bytes(tokenizer)[:size], stops, mesh),
        serving=serving(mesh, student.config, config, dtype=config.rollout.serve_dtype),
    )


def needs_teacher(config: Config) -> bool:
    """Whether training asks anything of the teacher's weights."""
    objective, rollout = config.objective, config.rollout
    losses = (objective.student_loss, objective.teacher_loss, objective.flawed_loss)
    return (
        any(loss.weight > 0 and loss.name not in ("cross_entropy", "masked") for loss in losses)
        or (config.monitor.enabled and rollout.on_policy > 0)
        or (rollout.off_policy == "teacher" and rollout.on_policy < 1)
        or config.student.init_from_teacher is not None
        or config.eval.reverse_kl
    )


def model_paths(config: Config, *, teacher: bool = True) -> tuple[str | Path, str | Path | None]:
    """(student, teacher) folders or hub ids; with neither named, the shipped pair.

    teacher: whether one is needed; None in its place where it is neither needed nor named.
    """
    student, master = config.student.path, config.teacher.path
    if config.student.init_from_teacher is not None:
        if student is not None:
            raise UserError("student.path and student.init_from_teacher are both set; keep one of them")
        student = master or str(SHIPPED / "teacher")
    if student is None and master is None:
        return SHIPPED / "student", SHIPPED / "teacher"
    if student is None:
        raise UserError("teacher.path is set but student.path is not; name a folder or hub id, or init_from_teacher")
    return student, master or (SHIPPED / "teacher" if teacher else None)


def _load(path: str | Path, dtype: str, mesh) -> Model:
    """A model, of which each process has read about its own share."""
    return Model(*load_pretrained(path, dtype, places=functools.partial(load_places, mesh)))


def _load_student(config: Config, path: str | Path, teacher: Model | None, mesh) -> Model:
    cut = config.student.init_from_teacher
    if cut is None or teacher is None:
        return _load(path, config.student.dtype, mesh)
    if "layers" not in cut:
        raise UserError("student.init_from_teacher needs 'layers', for example {layers: [0, 2, 4]}")
    params, shape = init_from_teacher(teacher.params, teacher.config, cut["layers"])
    return Model(jax.tree.map(lambda x: jnp.array(x, config.student.dtype), params), shape)


def _check_model(config: Config, role: str, model: Model, path: str, size: int) -> None:
    if model.config.vocab_size < size:
        raise UserError(f"{path}: the {role} has {model.config.vocab_size} embeddings, its tokenizer {size} tokens")
    for key, tokens in (
        ("rollout.max_new_tokens", config.rollout.max_new_tokens),
        ("eval.max_new_tokens", config.eval.max_new_tokens or 0),
    ):
        longest = config.data.max_prompt_tokens + tokens
        if longest > model.config.max_positions:
            raise UserError(
                f"data.max_prompt_tokens + {key} = {longest} is more than the {role}'s "
                f"{model.config.max_positions} positions ({path}); lower one of the two"
            )


def transition_ids(session: Session) -> list[int]:
    """The transition text's tokens; UserError if the tokenizer can't write it and a stitched target needs it."""
    text, tokenizer = session.config.objective.transition_text, session.tokenizer
    if not text or session.config.objective.target != "stitched":
        return []
    ids = list(tokenizer.encode(text, add_special_tokens=False))
    back = session.decode(ids)
    if back.strip() != text.strip():
        raise UserError(f"objective.transition_text = {text!r}: the tokenizer turns it into {back!r}; choose another")
    return ids


def teacher_rows(config: Config, mesh) -> int:
    """Slots that the teacher writes in at a time, 0 for all: on CPUs a quarter of them, since there each row costs."""
    given, slots = config.backtrack.teacher_rows, config.rollout.slots or config.rollout.batch_size
    if given is not None:
        return given
    return slots // 4 if platform_of(mesh) == "cpu" else 0


def rollout_config(config: Config, pieces: list[bytes], stops: Sequence[int], mesh) -> RolloutConfig:
    """The engine's numbers, from the configuration and the bytes that each token stands for."""
    rollout, monitor, backtrack = config.rollout, config.monitor, config.backtrack
    window = monitor.step_tokens
    return RolloutConfig(
        automaton=compile_window(window) if window else compile_delimiter(monitor.step_delimiter, pieces),
        stop_ids=jnp.asarray(stops, jnp.int32),
        eps0=jnp.float32(monitor.eps0),
        theta=jnp.float32(monitor.theta if monitor.boundary == "entropy_adaptive" else 0.0),
        vocab_size=len(pieces),
        max_new_tokens=rollout.max_new_tokens,
        segment_tokens=rollout.segment_tokens,
        slots=rollout.slots,
        temperature=rollout.temperature,
        top_k=rollout.top_k,
        top_p=rollout.top_p,
        monitored=monitor.enabled,
        signal=monitor.signal,
        signal_top_k=monitor.top_k,
        alarm_is_high=monitor.signal in ALARM_IS_HIGH if monitor.alarm is None else monitor.alarm == "high",
        running_mean=monitor.boundary == "running_mean",
        patience=monitor.patience,
        first_token_certain=monitor.first_token_certain,
        window=window,
        target=backtrack.target,
        intervention=backtrack.intervention,
        steps=backtrack.steps,
        max_interventions=backtrack.max_interventions,
        max_discarded=backtrack.max_discarded_tokens,
        teacher_batch=backtrack.teacher_batch,
        teacher_rows=teacher_rows(config, mesh),
        entropy_top_k=monitor.entropy_top_k,
        targets=rollout.targets,
        targets_k=rollout.targets_k,
        targets_dtype=rollout.targets_dtype,
        # Unwatched, the student writes alone; the teacher reads what was written, for the loss, in one pass.
        read_after=not monitor.enabled,
        muted=jnp.array(False),
    )


def read_prompts(config: Config) -> list[Prompt]:
    """The training split as its source gives it; no model is needed."""
    return load_prompts(config.data, split="train", count=config.data.count, seed=config.data.shuffle_seed)


def training_prompts(session: Session, prompts: list[Prompt] | None = None) -> EncodedPrompts:
    """The training split, encoded; `prompts` is what `read_prompts` gave, where that was called before."""
    found = read_prompts(session.config) if prompts is None else prompts
    return _encode(session, found, session.config.data.path)


def held_out_prompts(session: Session, section: EvalConfig) -> EncodedPrompts | None:
    """The prompts of an evaluation, encoded; None where neither its section nor `data` offers any."""
    data = session.config.data
    if section.source is None:
        if not has_held_out(data.source):
            return None
        found = load_prompts(data, split="held_out", count=section.prompts, seed=data.shuffle_seed)
        return _encode(session, found, data.path)
    found = load_prompts(section, split=section.split, count=section.prompts, seed=data.shuffle_seed)
    return _encode(session, found, section.path)


def _encode(session: Session, prompts: list[Prompt], path: str | None) -> EncodedPrompts:
    data = session.config.data
    tokens = encode_all(
        prompts,
        session.tokenizer,
        chat_template=data.chat_template,
        thinking=data.thinking,
        max_prompt_tokens=data.max_prompt_tokens,
        path=path,
    )
    return EncodedPrompts(prompts, tokens)
