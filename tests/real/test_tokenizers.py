"""Published tokenizers: bytes, stop tokens, templates. `bash tests/real/install.sh tokenizers` fetches them."""

import functools
from pathlib import Path
from typing import Any

import pytest

from motab_jax.data.pairs import common_vocab_size
from motab_jax.data.stop_tokens import stop_ids
from motab_jax.data.templates import PromptForm, encode_prompts
from motab_jax.data.tokenizer import PROBE, decode, load_tokenizer, opens_thought, token_bytes, vocab_size
from motab_jax.runtime.notices import notice

FOLDER = Path(__file__).parents[2] / ".tokenizers"
NAMES = ("qwen3", "llama3_1", "gemma3", "gptoss", "deepseek_v3")
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not FOLDER.is_dir(), reason="no tokenizers: bash tests/real/install.sh tokenizers"),
]


@functools.lru_cache(maxsize=2)
def tokenizer_of(name: str) -> Any:
    return load_tokenizer(FOLDER / name)


@pytest.mark.parametrize("name", NAMES)
def test_the_bytes_of_a_texts_tokens_are_its_bytes(name):
    tokenizer = tokenizer_of(name)
    ids, pieces = tokenizer.encode(PROBE, add_special_tokens=False), token_bytes(tokenizer)
    assert b"".join(pieces[i] for i in ids) == PROBE.encode()
    first = tokenizer.encode("a", add_special_tokens=False)
    for index, token in tokenizer.added_tokens_decoder.items():
        if not token.special:
            assert "a" + pieces[index].decode() == decode(tokenizer, [*first, index]), token.content
    assert stop_ids(tokenizer, FOLDER / name) == (tokenizer.eos_token_id,)
    assert common_vocab_size(tokenizer, tokenizer) == vocab_size(tokenizer)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "gptoss"])  # that package has no template
def test_a_prompt_is_what_transformers_makes_of_it(name):
    tokenizer = tokenizer_of(name)
    chat = [{"role": "user", "content": "What is 2 + 3?"}]
    theirs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    (ours,) = encode_prompts(tokenizer, [chat], PromptForm(True))
    assert ours == theirs
    (typed,) = encode_prompts(tokenizer, [f"{tokenizer.eos_token}!"], PromptForm(True))
    assert typed.count(tokenizer.eos_token_id) == ours.count(tokenizer.eos_token_id), "what a user types stays text"


def test_a_thinking_switch(capsys):
    notice.cache_clear()
    qwen = tokenizer_of("qwen3")
    (thinks,), (answers,) = (encode_prompts(qwen, ["1+1?"], PromptForm(True, thinking=on)) for on in (True, False))
    assert decode(qwen, answers[len(thinks) :]) == "<think>\n\n</think>\n\n" and not opens_thought(qwen, answers)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["llama3_1", "gemma3"])
def test_a_text_that_was_made_by_a_template_begins_once(name):
    tokenizer = tokenizer_of(name)
    chat = [{"role": "user", "content": "hi"}]
    (ids,) = encode_prompts(tokenizer, [chat], PromptForm(True))
    (again,) = encode_prompts(tokenizer, [decode(tokenizer, ids, special=True)], PromptForm())
    assert again == ids and again.count(tokenizer.bos_token_id) == 1
