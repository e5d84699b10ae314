"""The student as a Hugging Face folder: weights, config.json, tokenizer, generation_config.json."""

from pathlib import Path

from motab_jax.models.hf.pretrained import save_pretrained
from motab_jax.models.transformer import Params
from motab_jax.runtime.hub import load_generation_config
from motab_jax.session.session import Session


def export_student(session: Session, params: Params, folder: Path) -> None:
    """Write the student's parameters, its tokenizer, and what its source says of generation and special tokens."""
    generation = load_generation_config(session.source)
    generation.setdefault("eos_token_id", [int(i) for i in session.rollout_config.stop_ids])
    save_pretrained(
        folder,
        params,
        session.student.config,
        tokenizer=session.tokenizer,
        source=session.source,
        generation_config=generation,
    )
