"""The forward pass, the cache and the files against transformers in torch, float32, on random tiny models."""

import json
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from motab_jax.models import forward, load_pretrained, save_pretrained
from motab_jax.models.cache import init_cache
from motab_jax.models.hf.gguf import convert
from motab_jax.models.transformer import encode, unembed
from tests.models.tiny_gguf import write_gguf

pytestmark = pytest.mark.parity

TOLERANCE = 1e-4
ROWS, TIME, VOCAB = 3, 40, 97
LENGTHS = (TIME, 23, 9)
CLASSES = {
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
}
LLAMA3 = {
    **{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


@dataclass(frozen=True)
class Case:
    """A family and what its config says beyond the common tiny shape."""

    family: str
    settings: dict = field(default_factory=dict)
    rope: dict = field(default_factory=dict)
    theta: float = 1000.0

    def model(self):
        """The oracle, in float32, with weights that make every part of the network count."""
        config_class, model_class = CLASSES[self.family]
        shape = {"vocab_size": VOCAB, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3}
        shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
        rope = {"rope_theta": self.theta, "rope_type": "default", **self.rope}
        raw = {**shape, "tie_word_embeddings": False, "rope_parameters": rope, **self.settings}
        config = config_class(**raw, attn_implementation="eager")
        torch.manual_seed(0)
        model = model_class(config).float().eval()
        for name, weight in model.named_parameters():
            values = torch.randn_like(weight)
            if "norm" in name:
                weight.data = 1.0 + 0.3 * values
            elif name.endswith("bias"):
                weight.data = 0.5 * values
            else:
                weight.data = 2.0 * values / weight.shape[-1] ** 0.5
        return model


CASES = {
    "qwen3-untied": Case("qwen3", {"head_dim": 16}),
    "qwen3-tied-bias": Case("qwen3", {"head_dim": 8, "tie_word_embeddings": True, "attention_bias": True}),
    "qwen3-yarn": Case("qwen3", {"head_dim": 16}, YARN),
    "qwen2-untied": Case("qwen2"),
    "qwen2-tied": Case("qwen2", {"tie_word_embeddings": True, "rms_norm_eps": 1e-2}),
    "qwen2-yarn-mscale": Case("qwen2", {}, {**YARN, "mscale": 0.7, "mscale_all_dim": 1.3, "truncate": False}),
    "qwen2-yarn-betas": Case("qwen2", {}, {**YARN, "beta_fast": 8.0, "beta_slow": 0.5, "attention_factor": 1.2}),
    "llama-gqa": Case("llama", {"num_attention_heads": 6, "num_key_value_heads": 2}),
    "llama-one-kv-head": Case("llama", {"num_key_value_heads": 1, "head_dim": 20}),
    "llama-tied-bias": Case("llama", {"tie_word_embeddings": True, "attention_bias": True}),
    "llama-linear": Case("llama", {}, {"rope_type": "linear", "factor": 3.0}),
    "llama-llama3": Case("llama", {"head_dim": 32}, LLAMA3),
    "llama-theta": Case("llama", theta=5e5),
}
each_case = pytest.mark.parametrize("name", CASES)
each_kind = pytest.mark.parametrize("name", ["qwen3-tied-bias", "qwen2-yarn-betas", "llama-llama3"])


def tokens_and_positions():
    """Left-padded rows: tokens and positions [ROWS, TIME], position -1 where padded."""
    tokens = np.random.default_rng(0).integers(0, VOCAB, (ROWS, TIME)).astype(np.int32)
    positions = np.stack([np.arange(TIME) - (TIME - length) for length in LENGTHS]).astype(np.int32)
    return tokens, np.maximum(positions, -1)


def oracle_logits(model, tokens, positions=None):
    extra = {}
    if positions is not None:
        extra = {"attention_mask": torch.tensor(positions >= 0).long()}
        extra["position_ids"] = torch.tensor(np.maximum(positions, 0)).long()
    with torch.inference_mode():
        return model(input_ids=torch.tensor(tokens).long(), use_cache=False, **extra).logits.numpy()


def difference(ours, theirs, seen=None):
    gaps = np.abs(np.asarray(ours) - theirs).max(-1)
    return float(gaps.max() if seen is None else gaps[seen].max())


@pytest.fixture
def pair(name, tmp_path):
    """The oracle, and the same model loaded from the folder that transformers saved."""
    model = CASES[name].model()
    model.save_pretrained(tmp_path / "theirs")
    return model, *load_pretrained(tmp_path / "theirs")


@each_case
def test_logits(pair):
    model, params, config = pair
    tokens, _ = tokens_and_positions()
    expected = oracle_logits(model, tokens)
    assert expected.std() > 0.5, "trivial logits would prove nothing"
    assert difference(forward(params, config, jnp.asarray(tokens)), expected) <= TOLERANCE


@each_case
def test_left_padding(pair):
    model, params, config = pair
    tokens, positions = tokens_and_positions()
    ours = forward(params, config, jnp.asarray(tokens), jnp.asarray(positions))
    assert difference(ours, oracle_logits(model, tokens, positions), positions >= 0) <= TOLERANCE


@each_kind
def test_cached_segments_equal_the_full_forward(pair):
    model, params, config = pair
    tokens, positions = tokens_and_positions()
    expected = oracle_logits(model, tokens, positions)
    cache = init_cache(config, ROWS, TIME + 8)
    filled = np.full((ROWS, TIME + 8), -1, np.int32)
    step = jax.jit(encode, static_argnames="config")
    cursor = 0
    for size in (13, 1, 1, 13, 12):
        now = slice(cursor, cursor + size)
        filled[:, now] = positions[:, now]
        arguments = {"cache": cache, "key_positions": jnp.asarray(filled), "cursor": cursor}
        hidden, cache = step(params, config, tokens[:, now], positions[:, now], **arguments)
        ours = unembed(params, config, hidden)
        assert difference(ours, expected[:, now], positions[:, now] >= 0) <= TOLERANCE
        cursor += size
    assert cursor == TIME


@each_case
def test_a_saved_folder_gives_the_same_logits_in_transformers(pair, tmp_path):
    model, params, config = pair
    tokens, _ = tokens_and_positions()
    save_pretrained(tmp_path / "ours", params, config, source=tmp_path / "theirs", max_shard_bytes=50_000)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", attn_implementation="eager")
    assert again.dtype == torch.float32
    assert difference(oracle_logits(again, tokens), oracle_logits(model, tokens)) == 0.0


@each_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_load_save_load_is_bit_exact(name, dtype, tmp_path):
    model = CASES[name].model().to(dtype)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="50KB")
    params, config = load_pretrained(tmp_path / "theirs")
    assert {str(weight.dtype) for weight in jax.tree.leaves(params)} == {str(dtype).removeprefix("torch.")}
    save_pretrained(tmp_path / "ours", params, config)
    again, config_again = load_pretrained(tmp_path / "ours")
    assert config_again == config
    jax.tree.map(np.testing.assert_array_equal, params, again)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "ours").state_dict()
    assert theirs.keys() == model.state_dict().keys()
    assert all(torch.equal(theirs[key], value) for key, value in model.state_dict().items())


@each_kind
def test_older_configs_that_say_rope_scaling(name, tmp_path):
    """Until transformers 5, rope was said by `rope_theta` and `rope_scaling`."""
    model = CASES[name].model()
    model.save_pretrained(tmp_path)
    _, config = load_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    rope = raw.pop("rope_parameters")
    raw["rope_theta"] = rope.pop("rope_theta")
    raw["rope_scaling"] = None if rope["rope_type"] == "default" else {"type": rope.pop("rope_type"), **rope}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert load_pretrained(tmp_path)[1] == config


@pytest.mark.parametrize(
    "added",
    [
        {"rope_scaling": YARN},  # beside the default rope_parameters that transformers wrote
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 3},  # from layer 3 on, which isn't there
    ],
    ids=["yarn by hand", "window without a layer"],
)
def test_what_users_add_to_a_config(added, tmp_path):
    Case("qwen2").model().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    raw = json.loads(file.read_text())
    del raw["layer_types"]
    file.write_text(json.dumps(raw | added))
    tokens, _ = tokens_and_positions()
    expected = oracle_logits(AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager"), tokens)
    params, config = load_pretrained(tmp_path)
    assert difference(forward(params, config, jnp.asarray(tokens)), expected) <= TOLERANCE


def test_a_gguf_vocabulary_tokenizes_as_transformers_reads_it(tmp_path):
    write_gguf(tmp_path / "tiny.gguf")
    convert(tmp_path / "ours", tmp_path / "tiny.gguf")
    ours = AutoTokenizer.from_pretrained(tmp_path / "ours")
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="tiny.gguf")
    text = "<|im_start|>the thin tin\n  Hé, 世界!<|im_end|>\n"
    assert ours(text).input_ids == theirs(text).input_ids
    assert ours.get_vocab() == theirs.get_vocab()
    chat = [{"role": "user", "content": "thin"}]
    assert ours.apply_chat_template(chat).input_ids == theirs.apply_chat_template(chat).input_ids
