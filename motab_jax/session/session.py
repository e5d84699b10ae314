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

from motab_jax.config import Config, UserError
from motab_jax.data.tokenizer import check_same_tokenizer, decode, load_tokenizer, stop_ids, token_bytes, vocab_size
from motab_jax.models.hf.pretrained import load_pretrained
from motab_jax.models.hf.weight_names import load_shardings
from motab_jax.models.prune import init_from_teacher
from motab_jax.models.transformer import Model, Params
from motab_jax.quickstart import STUDENT, TEACHER
from motab_jax.rollout import RolloutConfig
from motab_jax.runtime.distributed import barrier
from motab_jax.runtime.mesh import check_heads, make_mesh
from motab_jax.session.placement import layout, serving, teacher_serving
from motab_jax.session.rollout_config import rollout_config

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
        master = teacher_serving(
            mesh, master.config, scan_layers=config.rollout.scan_layers, int8=config.teacher.quantize == "int8"
        )(master.params)
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
        serving=serving(mesh, student.config, scan_layers=config.rollout.scan_layers, dtype=config.rollout.serve_dtype),
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
        student = master or str(TEACHER)
    if student is None and master is None:
        return STUDENT, TEACHER
    if student is None:
        raise UserError("teacher.path is set but student.path is not; name a folder or hub id, or init_from_teacher")
    return student, master or (TEACHER if teacher else None)


def _load(path: str | Path, dtype: str, mesh) -> Model:
    """A model, of which each process has read about its own share."""
    return Model(*load_pretrained(path, dtype, shardings=functools.partial(load_shardings, mesh)))


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
