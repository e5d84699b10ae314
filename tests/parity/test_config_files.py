"""What a config.json says of the rotary embedding and of windows, against transformers' own reading of it.

Each file is read by both. Where transformers refuses it, so must we; where we read it, the frequencies and the factor
of cos and sin must be transformers'.
"""

import copy
import itertools

import numpy as np
import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import LlamaConfig, Qwen2Config, Qwen3Config
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

from motab_jax.config import UserError
from motab_jax.models.architecture import ModelConfig
from motab_jax.models.rope import frequencies

pytestmark = pytest.mark.parity

CLASSES = {
    "llama": (LlamaConfig, LlamaRotaryEmbedding),
    "qwen2": (Qwen2Config, Qwen2RotaryEmbedding),
    "qwen3": (Qwen3Config, Qwen3RotaryEmbedding),
}
SHAPE = {
    **{"vocab_size": 97, "hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 3, "head_dim": 16},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256},
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
NEW = [
    {"rope_type": "default", "rope_theta": 5e5},
    {"rope_type": "yarn", "factor": 2.0, "rope_theta": 5e5},
    {"rope_type": "linear", "factor": 2.0},
    {},
    None,
]
OLD = [
    YARN,
    {**YARN, "rope_theta": 2e4},
    {"type": "linear", "factor": 3.0},
    {**LLAMA3, "original_max_position_embeddings": 64},
    {},
    None,
]
BOTH = [
    {"rope_parameters": new, "rope_scaling": old} | theta
    for new, old, theta in itertools.product(NEW, OLD, [{}, {"rope_theta": 3e5}])
]
ONE = [
    {},
    {"rope_theta": None},
    {"rope_theta": 7},
    {"rope_scaling": {"rope_theta": 123.0}},
    {"rope_parameters": LLAMA3},  # the original length is the model's
    {"rope_parameters": {**LLAMA3, "attention_factor": 2.0}},  # ignored by this kind
    {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "attention_factor": 2.0}},
    {"rope_parameters": {**LLAMA3, "original_max_position_embeddings": 32}, "original_max_position_embeddings": 64},
    {"rope_parameters": YARN, "original_max_position_embeddings": 64},
    {"rope_parameters": {**YARN, "factor": None}},
    {"rope_parameters": {**YARN, "beta_fast": None, "beta_slow": 0}},
    {"rope_parameters": {**YARN, "beta_fast": 1.0, "beta_slow": 4.0}},
    {"rope_parameters": {**YARN, "beta_fast": 1.2, "beta_slow": 1.2, "truncate": False}},
    {"rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.0}},
    {"rope_parameters": {**YARN, "attention_factor": 0.0}},
    {"rope_parameters": {**YARN, "attention_factor": None, "mscale": 0.7, "mscale_all_dim": 1.2}},
    {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}},
    {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
    {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 5e5}}},
    {"partial_rotary_factor": 0.5},
    {"layer_types": ["full_attention"] * 3},
    {"layer_types": ["full_attention"] * 2},
    {"layer_types": ["full_attention", "chunked_attention", "full_attention"]},
    {"use_cache": None},
    {"attention_bias": None},
    {"max_position_embeddings": 512.0},
    {"max_position_embeddings": None},
    {"rms_norm_eps": None},
    {"tie_word_embeddings": None},
    {"max_window_layers": None},
    {"head_dim": None},
    {"num_key_value_heads": None},
    {"vocab_size": "97"},
    {"hidden_size": 66},
    {"hidden_act": None},
]


def theirs(family, raw):
    """(inverse frequencies, factor of cos and sin) as transformers reads the file; None where it refuses it."""
    config_class, rope_class = CLASSES[family]
    try:
        rope = rope_class(config_class.from_dict(copy.deepcopy(raw)))
    except (StrictDataclassError, ValueError, TypeError, KeyError):  # its validation, and what breaks behind it
        return None
    return rope.inv_freq.numpy(), rope.attention_scaling


@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize("changes", ONE + BOTH, ids=str)
def test_files_are_read_as_transformers_reads_them_or_refused(family, changes):
    raw = {"model_type": family, **SHAPE, **changes}
    try:
        config = ModelConfig.from_hf(raw)
    except UserError as error:
        assert changes not in BOTH, error
        return
    expected = theirs(family, raw)
    assert expected is not None, "transformers refuses this file"
    inverse, factor = frequencies(config.rope, config.head_dim)
    np.testing.assert_allclose(inverse, expected[0], rtol=2e-6)
    assert factor == pytest.approx(expected[1], rel=1e-6)
