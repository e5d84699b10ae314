"""What a config.json means, and what of it is refused."""

import dataclasses

import pytest

from motab_jax.config import UserError
from motab_jax.models.architecture import ModelConfig, Rope
from tests.models.tiny import CONFIGS

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
ROPES = {
    "default": {},
    "linear": {"factor": 2.0},
    "llama3": LLAMA3,
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 16.0, "truncate": False},
}


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("kind", ROPES)
def test_to_hf_and_back(family, kind):
    rope = Rope(123.0, kind, tuple(sorted(ROPES[kind].items())))
    config = dataclasses.replace(CONFIGS[family], rope=rope)
    assert ModelConfig.from_hf(config.to_hf()) == config
    older = config.to_hf()
    del older["rope_parameters"]
    assert ModelConfig.from_hf(older) == config


def test_yarn_takes_the_original_length_from_the_model():
    raw = CONFIGS["llama"].to_hf() | {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10.0}}
    assert ModelConfig.from_hf(raw).rope.get("original_max_position_embeddings") == 64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gemma2"}, "model_type 'gemma2' is not implemented"),
        ({"use_sliding_window": True}, "sliding-window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding-window"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"quantization_config": {"bits": 4}}, "quantized"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "'longrope' is not implemented"),
        ({"rope_parameters": {"rope_type": "linear"}}, "'linear' lacks factor"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "bend": 1}}, "bend"),
        ({"num_attention_heads": 5}, "do not divide"),
        ({"head_dim": 7}, "odd"),
    ],
)
def test_refusals(changes, message):
    with pytest.raises(UserError, match=message):
        ModelConfig.from_hf(CONFIGS["llama"].to_hf() | changes)


def test_a_missing_key_is_named():
    raw = CONFIGS["llama"].to_hf()
    del raw["hidden_size"]
    with pytest.raises(UserError, match=r"here/config\.json: the key 'hidden_size' is missing"):
        ModelConfig.from_hf(raw, "here/config.json")
