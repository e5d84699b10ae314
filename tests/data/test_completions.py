"""Completions that the data gives: they follow their prompt as the model's own would."""

import pytest

from motab_jax.config import UserError
from motab_jax.data.completions import encode_completions
from motab_jax.data.records import Prompt
from motab_jax.runtime.notices import notice
from tests.data.test_tokenizer import byte_level


def encoded(completion: str, prompt: str = "why?", tokenizer=None) -> str:
    """The text of a completion's tokens, special tokens included."""
    notice.cache_clear()
    tokenizer = tokenizer or byte_level()
    stops = [tokenizer.eos_token_id, tokenizer.get_vocab()["."]]  # the second is no token of its own text
    prompts, tokens = [Prompt("1", prompt, None, "none", completion=completion)], [tokenizer.encode(prompt)]
    (ids,) = encode_completions(prompts, tokens, tokenizer, stop=stops[0], stop_ids=stops, path=None)
    return str(tokenizer.decode(ids))


@pytest.mark.parametrize(
    ("completion", "text"),
    [
        ("so.", "so.<eos>"),
        ("so <eos>", "so <eos>"),
        ("so.<eos>\n", "so.<eos>"),
        ("a<eos>b", "a<eos>b<eos>"),
    ],
)
def test_one_stop_token_ends_a_completion(completion, text):
    assert encoded(completion) == text


def test_the_stop_token_that_ends_the_text_is_kept():
    tokenizer = byte_level()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<end>"]})
    prompts, end = [Prompt("1", "a", None, "none", completion="b<end>")], tokenizer.get_vocab()["<end>"]
    stops = [tokenizer.eos_token_id, end]
    (ids,) = encode_completions(prompts, [[3]], tokenizer, stop=stops[0], stop_ids=stops, path=None)
    assert ids[-1] == end and stops[0] not in ids


@pytest.mark.parametrize(
    ("prompt", "completion", "text", "note"),
    [
        ("why?<think>\n", "<think>\nhm</think>so", "hm</think>so<eos>", "begin with <think>"),
        ("why?<think>\n", "\n<think>\n\nhm</think>so", "\nhm</think>so<eos>", "begin with <think>"),
        ("why?<think>", "<think>\nhm</think>so", "\nhm</think>so<eos>", "begin with <think>"),
        ("why?<think>\n", "hm</think>so", "hm</think>so<eos>", ""),
        ("why?<think>\n", "so", "so<eos>", "have no </think>"),
        ("why?", "<think>\nhm</think>so", "<think>\nhm</think>so<eos>", ""),
        ("<think>why</think>", "<think>so</think>", "<think>so</think><eos>", ""),
    ],
)
def test_a_thought_is_opened_once(prompt, completion, text, note, capsys):
    assert encoded(completion, prompt) == text
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == bool(note) and all(note in line for line in lines)


def test_a_blank_completion_is_refused():
    with pytest.raises(UserError, match="prompt '1' has no completion"):
        encoded(" \n")
