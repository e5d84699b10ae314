"""Folders in and out: bit-exact round trips, shards, memory, replacing a folder as a whole."""

import functools
import json
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file

from motab_jax.config import UserError
from motab_jax.models import load_pretrained, save_pretrained
from motab_jax.models.architecture import ModelConfig
from motab_jax.models.hf import pretrained
from motab_jax.models.hf.tensorfile import TensorFiles
from motab_jax.models.hf.weight_names import load_shardings
from motab_jax.models.transformer import weight_specs
from motab_jax.runtime.hub import load_generation_config
from motab_jax.runtime.mesh import make_mesh
from tests.models.tiny import CONFIGS, random_params

each = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)
    assert jax.tree.map(lambda x: x.dtype, one) == jax.tree.map(lambda x: x.dtype, other)


@each
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_save_then_load_is_bit_exact(config, dtype, tmp_path):
    params = random_params(config, dtype)
    save_pretrained(tmp_path / "m", params, config)
    again, config_again = load_pretrained(str(tmp_path / "m"))
    assert config_again == config
    same(again, params)
    assert (tmp_path / "m" / "model.safetensors").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"], "no temporary folder is left"


def test_shards_keep_to_their_size_and_the_index_names_all(tmp_path):
    config = CONFIGS["qwen3"]
    save_pretrained(tmp_path / "m", random_params(config), config, max_shard_bytes=9000)
    same(load_pretrained(tmp_path / "m")[0], random_params(config))
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
    shards = sorted((tmp_path / "m").glob("*.safetensors"))
    held = {name: path.name for path in shards for name in load_file(path)}
    assert len(shards) > 3 and shards[0].name == f"model-00001-of-{len(shards):05}.safetensors"
    assert index["weight_map"] == held
    assert index["metadata"]["total_size"] == sum(x.nbytes for path in shards for x in load_file(path).values())
    assert all(sum(x.nbytes for x in load_file(path).values()) <= 9000 for path in shards)


def test_dtype_and_mixed_files(tmp_path):
    config = CONFIGS["qwen2"]
    params = random_params(config, jnp.bfloat16)
    params["final_norm"] = params["final_norm"].astype(jnp.float32)
    save_pretrained(tmp_path / "m", params, config)
    mixed, _ = load_pretrained(tmp_path / "m")
    same(mixed, jax.tree.map(lambda x: x.astype(jnp.float32), params))
    narrow, _ = load_pretrained(tmp_path / "m", "bfloat16")
    same(narrow, jax.tree.map(lambda x: x.astype(jnp.bfloat16), params))


def test_ignored_tensors(tmp_path):
    """Old files hold rotary buffers, and a head although it is tied."""
    config = CONFIGS["qwen2"]
    params = random_params(config)
    save_pretrained(tmp_path / "m", params, config)
    file = tmp_path / "m" / "model.safetensors"
    extra = {"lm_head.weight": np.asarray(params["embed"])}
    extra["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(3, np.float32)
    save_file(load_file(file) | extra, file)
    same(load_pretrained(tmp_path / "m")[0], params)
    save_file(load_file(file) | {"lm_head.weight": extra["lm_head.weight"] + 1}, file)
    with pytest.raises(UserError, match=r"lm_head\.weight differs from model\.embed_tokens\.weight"):
        load_pretrained(tmp_path / "m")


def test_sharded_parameters(devices, tmp_path):
    """Weights are laid over devices as they are read; what is spread over devices is saved whole."""
    config = CONFIGS["qwen3"]
    params = random_params(config)
    save_pretrained(tmp_path / "m", params, config)
    mesh = jax.make_mesh((8,), ("x",), devices=devices)

    def shardings_of(config_read):
        assert config_read == config

        def sharding(spec):
            return NamedSharding(mesh, PartitionSpec(*("x" if name == "mlp" else None for name in spec.axes)))

        return jax.tree.map(sharding, weight_specs(config_read))

    spread, _ = load_pretrained(tmp_path / "m", shardings=shardings_of)
    assert spread["layers"]["gate"].addressable_shards[0].data.shape == (3, 24, 5)
    same(spread, params)
    save_pretrained(tmp_path / "again", spread, config)
    same(load_pretrained(tmp_path / "again")[0], params)


@each
def test_every_part_is_read_once(config, devices, tmp_path, monkeypatch):
    """The weights are those of a whole load; no byte is read twice, and sizes that divide are cut into whole pieces."""
    params, read = random_params(config), []
    save_pretrained(tmp_path / "m", params, config)
    whole = TensorFiles.read

    def noted(files, name, spans):
        read.append(whole(files, name, spans))
        if "mlp" in name or "o_proj.weight" in name:
            assert spans[1] == (0, files.shape(name)[1]), f"{name} is not read in one piece"
        return read[-1]

    monkeypatch.setattr(TensorFiles, "read", noted)
    mesh = make_mesh(2, 2, 2)
    spread, _ = load_pretrained(tmp_path / "m", shardings=functools.partial(load_shardings, mesh))
    same(spread, params)
    parts = spread["layers"]["gate"].addressable_shards
    assert parts[0].data.size * 8 == spread["layers"]["gate"].size
    assert len({str(shard.index) for shard in parts}) == 8
    assert sum(part.nbytes for part in read) == sum(x.nbytes for x in jax.tree.leaves(params))


def test_host_memory_is_one_weight(tmp_path, monkeypatch):
    config = ModelConfig("llama", 64, 64, 256, 24, 2, 2, 32, 64)
    params = jax.tree.map(np.asarray, random_params(config))
    sizes = [x.nbytes for x in jax.tree.leaves(params)]
    tracemalloc.start()
    save_pretrained(tmp_path / "m", params, config)
    saving = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    monkeypatch.setattr(pretrained.jax, "device_put", lambda values: jnp.zeros(()))  # devices hold nothing
    load_pretrained(tmp_path / "m")
    loading = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(sizes) > 3 * max(sizes)
    assert saving < 0.5 * max(sizes), "saving holds one layer of one weight"
    assert loading < 1.5 * max(sizes), "loading holds one stacked weight and one layer"


class FakeTokenizer:
    """What `save_pretrained` asks of a tokenizer."""

    def __init__(self, error=None):
        self.error = error

    def save_pretrained(self, folder):
        if self.error:
            raise self.error
        (folder / "tokenizer.json").write_text("{}")


def test_source_and_generation_config(tmp_path):
    config = CONFIGS["qwen3"]
    params = random_params(config)
    generation = {"eos_token_id": [5, 6], "pad_token_id": 0, "temperature": 0.6}
    save_pretrained(tmp_path / "teacher", params, config, generation_config=generation)
    file = tmp_path / "teacher" / "config.json"
    raw = json.loads(file.read_text())
    assert (raw["eos_token_id"], raw["pad_token_id"], raw["dtype"]) == ([5, 6], 0, "float32")
    more = {"bos_token_id": 3, "layer_types": ["full_attention"] * 3, "torch_dtype": "float16", "auto_map": {}}
    file.write_text(json.dumps(raw | more | {"hidden_size": 999}))
    save_pretrained(tmp_path / "m", params, config, tokenizer=FakeTokenizer(), source=tmp_path / "teacher")
    saved = json.loads((tmp_path / "m" / "config.json").read_text())
    assert saved["bos_token_id"] == 3 and saved["hidden_size"] == 24
    assert not {"layer_types", "torch_dtype", "auto_map"} & set(saved)
    assert load_generation_config(tmp_path / "m") == generation
    assert (tmp_path / "m" / "tokenizer.json").exists()
    save_pretrained(tmp_path / "m", params, config)
    assert load_generation_config(tmp_path / "m") == {}
    assert not (tmp_path / "m" / "tokenizer.json").exists(), "an older model is replaced as a whole"


def test_an_export_that_fails_leaves_nothing(tmp_path):
    config = CONFIGS["qwen3"]
    params = random_params(config)
    with pytest.raises(UserError, match=r"m: the model cannot be written here: disk full"):
        save_pretrained(tmp_path / "m", params, config, tokenizer=FakeTokenizer(OSError("disk full")))
    assert list(tmp_path.iterdir()) == []
    save_pretrained(tmp_path / "m", params, config)
    with pytest.raises(KeyboardInterrupt):
        save_pretrained(tmp_path / "m", params, config, tokenizer=FakeTokenizer(KeyboardInterrupt()))
    same(load_pretrained(tmp_path / "m")[0], params)
    (tmp_path / ".m.partial").mkdir()  # left by a killed process
    save_pretrained(tmp_path / "m", params, config)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_foreign_folders_are_not_replaced(tmp_path):
    config = CONFIGS["qwen3"]
    params = random_params(config)
    (tmp_path / "m").mkdir()
    save_pretrained(tmp_path / "m", params, config)  # an empty folder is no loss
    (tmp_path / "m" / "notes.md").write_text("mine")
    with pytest.raises(UserError, match=r"holds something else than a model \(notes\.md\)"):
        save_pretrained(tmp_path / "m", params, config)
    with pytest.raises(UserError, match="a file is in the way"):
        save_pretrained(tmp_path / "m" / "notes.md", params, config)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.json").write_text("{}")
    with pytest.raises(UserError, match=r"no config\.json"):
        save_pretrained(tmp_path / "data", params, config)


def test_parameters_of_another_config_are_a_programming_error(tmp_path):
    with pytest.raises(ValueError, match="not those of the config"):
        save_pretrained(tmp_path / "m", random_params(CONFIGS["qwen3"]), CONFIGS["llama"])
