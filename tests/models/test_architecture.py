"""What a config.json means, and what of it is refused."""

import dataclasses
from typing import Any

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


def file_of(family="llama", **changes: Any) -> dict[str, Any]:
    """A config.json without any rope, and with these keys."""
    raw = CONFIGS[family].to_hf()
    for key in ("rope_scaling", "rope_parameters", "rope_theta"):
        del raw[key]
    return raw | changes


def test_yarn_takes_the_original_length_from_the_model():
    rope = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10.0}
    assert ModelConfig.from_hf(file_of(rope_parameters=rope)).rope.get("original_max_position_embeddings") == 64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gemma2"}, "model_type 'gemma2' is not implemented"),
        ({"model_type": ["llama"]}, "model_type a list is not implemented"),
        ({"layer_types": ["full_attention", "sliding_attention", "full_attention"]}, "sliding-window"),
        ({"layer_types": ["full_attention"] * 2 + ["chunked_attention"]}, "'chunked_attention'.* is not implemented"),
        ({"layer_types": ["full_attention"] * 2}, "layer_types has 2 entries, num_hidden_layers is 3"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"quantization_config": {"bits": 4}}, "quantized"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0]}}, "'longrope' is not implemented"),
        ({"rope_parameters": {"rope_type": "linear"}}, "'linear' lacks factor"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "bend": 1}}, "bend"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, r"rope_parameters\.full_attention"),
        ({"rope_scaling": LLAMA3 | {"type": "llama3", "high_freq_factor": 1.0}}, "high_freq_factor above"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "rope_theta": 1.0}}, "rope_theta above 1"),
        ({"num_attention_heads": 5}, "num_attention_heads = 5 is not a multiple of num_key_value_heads = 2"),
        ({"hidden_size": 25}, "hidden_size = 25 is not a multiple of num_attention_heads = 4"),
        ({"head_dim": 7}, "here.json: head_dim 7 is odd"),
    ],
)
def test_refusals(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        ModelConfig.from_hf(file_of(**changes), "here.json")
    assert str(caught.value).startswith("here.json: ")


WRONG_VALUES = ["many", None, 2.5, [3], {"a": 1}, True, -1, 0, 10**30, float("nan"), [[[[[[1]]]]]]]
# None of these is a value of the wrong type for its key.
RIGHT = {
    ("num_key_value_heads", None),
    ("head_dim", None),
    ("rms_norm_eps", 2.5),
    ("rms_norm_eps", 0),
    ("rms_norm_eps", 10**30),
    ("tie_word_embeddings", True),
    ("rope_theta", 2.5),
    ("rope_theta", 10**30),
    ("max_window_layers", -1),
    ("max_window_layers", 0),
    ("max_window_layers", 10**30),
    ("use_cache", True),
    ("layer_types", None),
    ("rope_scaling", None),
    ("rope_parameters", None),
}


@pytest.mark.parametrize("value", WRONG_VALUES, ids=repr)
def test_a_value_of_the_wrong_type_is_named(value):
    """Every key, every kind of wrong value: one line that names the file and the key."""
    keys = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim"]
    keys += ["num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "rope_theta"]
    keys += ["attention_bias", "max_window_layers", "use_cache", "layer_types", "rope_scaling", "rope_parameters"]
    for key in keys:
        fits = isinstance(value, dict) and key.startswith("rope_") and key != "rope_theta"
        if fits or (key, value) in [(name, right) for name, right in RIGHT if type(right) is type(value)]:
            continue
        if key == "attention_bias" and value is True:
            continue
        with pytest.raises(UserError) as caught:
            ModelConfig.from_hf(file_of() | {key: value}, "here.json")
        assert str(caught.value).startswith("here.json: ") and key in str(caught.value), (key, caught.value)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_wrong_value_inside_rope_is_named():
    for name in ("factor", "attention_factor", "beta_fast", "original_max_position_embeddings", "truncate"):
        rope = {"rope_type": "yarn", "factor": 2.0} | {name: "much"}
        with pytest.raises(UserError, match=rf"here\.json: rope_scaling\.{name} = 'much' should be a valid"):
            ModelConfig.from_hf(file_of(rope_scaling=rope), "here.json")


@pytest.mark.parametrize(
    ("layers", "changes", "accepted"),
    [
        (3, {"use_sliding_window": True, "max_window_layers": 3}, True),
        (3, {"use_sliding_window": True, "max_window_layers": 2}, False),
        (3, {"use_sliding_window": True}, True),  # the default is 28 layers
        (29, {"use_sliding_window": True}, False),
        (3, {"use_sliding_window": True, "max_window_layers": 0, "sliding_window": None}, True),
        (3, {"use_sliding_window": True, "max_window_layers": 0, "layer_types": ["full_attention"] * 3}, True),
    ],
)
def test_windows_that_no_layer_has_are_accepted(layers, changes, accepted):
    raw = file_of("qwen2", num_hidden_layers=layers, **changes)
    if accepted:
        assert ModelConfig.from_hf(raw).num_layers == layers
        return
    with pytest.raises(UserError, match="sliding-window"):
        ModelConfig.from_hf(raw)


def test_a_missing_key_is_named():
    raw = CONFIGS["llama"].to_hf()
    del raw["hidden_size"]
    with pytest.raises(UserError, match=r"here/config\.json: the key 'hidden_size' is missing"):
        ModelConfig.from_hf(raw, "here/config.json")
