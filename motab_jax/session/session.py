"""A session: the mesh, both models, the tokenizer and the rollout configuration, opened from a configuration.

Models and tokenizers that do not match raise a UserError, before any work. Left out: prompts (prompts.py).
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from motab_jax.config import Config, UserError
from motab_jax.data.pairs import SharedTokenizer, open_tokenizer
from motab_jax.data.tokenizer import decode, opens_thought, token_bytes
from motab_jax.models.hf.pretrained import load_pretrained, read_config
from motab_jax.models.hf.weight_names import load_shardings
from motab_jax.models.prune import init_from_teacher
from motab_jax.models.transformer import Model, Params
from motab_jax.quickstart import STUDENT, TEACHER
from motab_jax.rollout import RolloutConfig
from motab_jax.runtime.distributed import barrier
from motab_jax.runtime.hub import MODEL_FILES, TOKENIZER_FILES
from motab_jax.runtime.mesh import check_heads, make_mesh
from motab_jax.runtime.notices import notice
from motab_jax.runtime.shared_cache import download_once
from motab_jax.session.placement import layout, serving, teacher_serving, undivided
from motab_jax.session.rollout_config import make_rollout_config

LOADING_SECONDS = 3600  # that processes wait for each other to download and read the models


@dataclasses.dataclass(frozen=True)
class Session:
    """A run's models, and what they share."""

    config: Config
    mesh: Mesh
    student: Model  # in the update layout
    teacher: Model | None  # in the serving layout; None where it is not needed
    shared: SharedTokenizer
    source: str  # folder or hub id of the student: an export takes its other files from there
    rollout_config: RolloutConfig
    to_serving: Callable[[Params], Model]  # jitted: the student's parameters to a model in the serving layout

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, transformers'."""
        return self.shared.tokenizer

    @property
    def stop_id(self) -> int:
        """The token that ends a given completion."""
        return self.shared.stop_id

    @property
    def vocab_size(self) -> int:
        """Ids that count: the tokenizers'; a model's padded vocabulary may be larger."""
        return self.shared.vocab_size

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of token ids, without special tokens other than the tags of a thought."""
        return decode(self.tokenizer, tokens)

    def opens_thought(self, prompt_tokens: Sequence[int]) -> bool:
        """Whether a completion of this prompt begins inside a thought, which the prompt's template has opened."""
        return opens_thought(self.tokenizer, prompt_tokens)

    def serve(self, params: Params) -> Model:
        """The student with these parameters in the serving layout: new arrays at each call."""
        return self.to_serving(params)


def open_session(config: Config, *, teacher: bool | None = None) -> Session:
    """Load both models, and check that models, tokenizer and mesh match.

    If teacher.path is set but its weights aren't needed, its tokenizer and stop tokens are still used, so that all
    methods end a completion alike.

    Args:
      config: the run's configuration.
      teacher: whether the teacher's weights are needed; None: as `needs_teacher` says.

    Raises:
      UserError: a folder is missing or damaged, or models, tokenizers and mesh do not match; it names the key or file.
    """
    sizes = config.mesh
    mesh = make_mesh(sizes.data, sizes.fsdp, sizes.tensor, dcn_data=sizes.dcn_data)
    needed = needs_teacher(config) if teacher is None else teacher or config.student.init_from_teacher is not None
    student_path, teacher_path = model_paths(config, teacher=needed)
    teacher_files = [(teacher_path, MODEL_FILES if needed else TOKENIZER_FILES)] if teacher_path else []
    download_once([(student_path, MODEL_FILES), *teacher_files], LOADING_SECONDS)
    for path in filter(None, (student_path, teacher_path if needed else None)):
        read_config(path)  # a folder that is no model is called that, not one without a tokenizer
    shared = open_tokenizer(student_path, teacher_path, config.data.template, chat_template=config.data.chat_template)
    teacher_model = _load(teacher_path, config.teacher.dtype, mesh) if needed and teacher_path else None
    student = _load_student(config, student_path, teacher_model, mesh)
    for role, model, path in (("student", student, student_path), ("teacher", teacher_model, teacher_path)):
        if model is not None:
            _check_model(config, role, model, str(path), shared.vocab_size)
            check_heads(mesh.shape["tensor"], *model.config.heads, f"the {role}'s ({path})")
            for dimension in undivided(mesh, model.config):
                notice(f"the {role} ({path}): {dimension} does not divide, so every device has all of it")
    if teacher_model is not None:
        teacher_model = teacher_serving(
            mesh, teacher_model.config, scan_layers=config.rollout.scan_layers, int8=config.teacher.quantize == "int8"
        )(teacher_model.params)
    barrier("the models are loaded", LOADING_SECONDS)
    update = layout(mesh, student.config, "update")
    student = Model(jax.jit(lambda params: params, out_shardings=update)(student.params), student.config)
    return Session(
        config=config,
        mesh=mesh,
        student=student,
        teacher=teacher_model,
        shared=shared,
        source=str(student_path),
        rollout_config=make_rollout_config(
            config, token_bytes(shared.tokenizer)[: shared.vocab_size], shared.stop_ids, mesh
        ),
        to_serving=serving(
            mesh, student.config, scan_layers=config.rollout.scan_layers, dtype=config.rollout.serve_dtype
        ),
    )


def needs_teacher(config: Config) -> bool:
    """Whether training uses the teacher's weights: for a loss, for monitoring, to generate, or to make the student."""
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
    """Folders or hub ids of both models; with neither named, the shipped pair.

    Args:
      config: the run's configuration.
      teacher: whether a teacher is needed.

    Returns:
      (student, teacher); the teacher is None where it is neither named nor needed.

    Raises:
      UserError: the keys contradict each other, or name a teacher and no student.
    """
    student, named_teacher = config.student.path, config.teacher.path
    if config.student.init_from_teacher is not None:
        if student is not None:
            raise UserError("student.path and student.init_from_teacher are both set; keep one of them")
        student = named_teacher or str(TEACHER)
    if student is None and named_teacher is None:
        return STUDENT, TEACHER
    if student is None:
        raise UserError("teacher.path is set but student.path is not; name a folder or hub id, or init_from_teacher")
    return student, named_teacher or (TEACHER if teacher else None)


def _load(path: str | Path, dtype: str, mesh: Mesh) -> Model:
    """A model; each process reads about its own share of the weights."""
    return Model(*load_pretrained(path, dtype, shardings=functools.partial(load_shardings, mesh)))


def _load_student(config: Config, path: str | Path, teacher: Model | None, mesh: Mesh) -> Model:
    """The student of a folder, or of some of the teacher's layers."""
    chosen = config.student.init_from_teacher
    if chosen is None or teacher is None:
        return _load(path, config.student.dtype, mesh)
    if "layers" not in chosen:
        raise UserError("student.init_from_teacher needs 'layers', for example {layers: [0, 2, 4]}")
    params, model_config = init_from_teacher(teacher.params, teacher.config, chosen["layers"])
    return Model(jax.tree.map(lambda x: jnp.array(x, config.student.dtype), params), model_config)


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
    """The token ids of the transition text; none where the target is not stitched.

    Raises:
      UserError: the tokenizer does not give the text back.
    """
    text, tokenizer = session.config.objective.transition_text, session.tokenizer
    if not text or session.config.objective.target != "stitched":
        return []
    ids = list(tokenizer.encode(text, add_special_tokens=False))
    decoded = session.decode(ids)
    if decoded.strip() != text.strip():
        raise UserError(
            f"objective.transition_text = {text!r}: the tokenizer turns it into {decoded!r}; choose another"
        )
    return ids
