"""The student as a Hugging Face folder: weights, config.json, tokenizer, generation_config.json."""

from collections.abc import Sequence
from typing import Any

from motab_jax.models.hf.pretrained import save_pretrained
from motab_jax.models.transformer import Params
from motab_jax.runtime.hub import load_generation_config
from motab_jax.runtime.storage import AnyPath
from motab_jax.session.session import Session


def export_student(session: Session, params: Params, folder: AnyPath) -> None:
    """Write the student's parameters, and beside them the files of its source.

    The tokenizer's files and the chat template are copied as they are; a student that has no template gets the one that
    it was trained with. Of what the source says of generation one thing
    is new: all stop tokens of the run end a completion, those too that the student learnt from its teacher.
    """
    generation = load_generation_config(session.source)
    template = session.tokenizer.chat_template if session.config.data.chat_template else None
    save_pretrained(
        folder,
        params,
        session.student.config,
        source=session.source,
        generation_config=with_stop_ids(generation, [int(i) for i in session.rollout_config.stop_ids]),
        chat_template=template if isinstance(template, str) else None,
    )


def with_stop_ids(generation: dict[str, Any], stop_ids: Sequence[int]) -> dict[str, Any]:
    """What generation_config.json says, and every one of these ids ends a completion.

    >>> with_stop_ids({"eos_token_id": 0, "top_k": 20}, [0, 2])
    {'eos_token_id': [0, 2], 'top_k': 20}
    """
    listed = generation.get("eos_token_id")
    ids = list(listed) if isinstance(listed, list) else [] if listed is None else [listed]
    missing = [index for index in stop_ids if index not in ids]
    return {**generation, "eos_token_id": [*ids, *missing]} if missing else generation
