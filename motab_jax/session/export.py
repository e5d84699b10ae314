"""The student as a Hugging Face folder: weights, config.json, tokenizer, generation_config.json."""

from pathlib import Path

from motab_jax.models.hf.pretrained import load_generation_config, save_pretrained
from motab_jax.session.session import Session


def export_student(session: Session, params, folder: Path) -> None:
    """Write the student's parameters and its tokenizer."""
    generation = load_generation_config(session.source) or {}
    generation.setdefault("eos_token_id", [int(i) for i in session.rollout.stop_ids])
    save_pretrained(
        folder,
        params,
        session.student.config,
        tokenizer=session.tokenizer,
        source=session.source,
        generation_config=generation,
    )
