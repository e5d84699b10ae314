"""Every way a model folder can be wrong gets one clear error."""

import json

import huggingface_hub
import jax
import ml_dtypes
import numpy as np
import pytest
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors.numpy import load_file, save_file

from motab_jax.config import EnvironmentFailure, UserError
from motab_jax.models import load_pretrained, save_pretrained
from motab_jax.models.hf.tensorfile import is_finite
from motab_jax.runtime import failures
from motab_jax.runtime.hub import find_folder, load_generation_config
from tests.models.tiny import CONFIGS, random_params

CONFIG = CONFIGS["qwen3"]
Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def folder(tmp_path):
    save_pretrained(tmp_path / "m", random_params(CONFIG), CONFIG)
    return tmp_path / "m"


@pytest.fixture
def sharded(tmp_path):
    save_pretrained(tmp_path / "s", random_params(CONFIG), CONFIG, max_shard_bytes=20_000)
    return tmp_path / "s"


def refused(folder, message):
    with pytest.raises(UserError, match=message) as caught:
        load_pretrained(folder)
    assert "\n" not in str(caught.value)


def change_tensors(folder, change):
    file = folder / "model.safetensors"
    held = load_file(file)
    change(held)
    save_file(held, file)


def change_config(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("name", ["nowhere", "./nowhere", "runs/a/export", "~/no-such-folder-here"])
def test_no_such_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name == "nowhere":
        name = str(tmp_path / name)
    refused(name, "there is no such model folder")


def test_a_file_is_not_a_folder(folder):
    refused(folder / "config.json", "name the model's folder")


@pytest.mark.parametrize("error", [LocalEntryNotFoundError("no\nsuch"), HFValidationError("bad id")])
def test_what_the_hub_does_not_have(error, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    refused("someone/a-model", "someone/a-model: neither a folder here nor a model that the hub gives us")


def test_a_hub_out_of_reach_is_no_mistake(monkeypatch):
    def fail(*_, **__):
        raise ConnectionError("reset")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    monkeypatch.setattr(failures.time, "sleep", lambda _: None)
    with pytest.raises(EnvironmentFailure, match="someone/a-model: no folder here, and the hub"):
        load_pretrained("someone/a-model")


def test_hub_refusals_are_covered():
    """Not found, gated and server errors are one class's children; it is an HTTPError, which we catch."""
    assert issubclass(HfHubHTTPError, OSError)


def test_hub_download(folder, monkeypatch):
    asked = {}

    def give(name, **options):
        asked.update(options, name=name)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", give)
    assert load_pretrained("someone/a-model")[1] == CONFIG
    assert asked["name"] == "someone/a-model" and "*.safetensors" in asked["allow_patterns"]
    assert not any("bin" in pattern for pattern in asked["allow_patterns"])


def test_config_missing(folder):
    (folder / "config.json").unlink()
    refused(folder, r"config\.json: the file is missing")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a":\n ]', "broken JSON at line 2"),
        ("[]", "a list"),
        ("\xff", ""),
        ('{"a": ' + "[" * 100_000, "nested too deeply"),
        ('{"vocab_size": ' + "9" * 5000 + "}", "broken JSON"),
    ],
)
def test_config_broken(folder, text, message):
    (folder / "config.json").write_text(text, encoding="latin-1")
    refused(folder, r"config\.json: .*" + message)


def test_architecture_refused(folder):
    change_config(folder, model_type="mamba")
    refused(folder, r"config\.json: model_type 'mamba' is not implemented")


def test_tensor_lists(folder):
    def change(held):
        del held[Q]
        held["model.layers.0.extra.weight"] = np.ones(2, np.float32)
        held["model.norm.weight"] = np.ones(7, np.float32)

    change_tensors(folder, change)
    misshapen = r"misshapen: model\.norm\.weight \[7\] instead of \[24\]"
    refused(folder, rf"missing: {Q}; unexpected: model\.layers\.0\.extra\.weight; {misshapen}")


def test_long_lists_are_cut(folder):
    change_config(folder, num_hidden_layers=9)
    refused(folder, r"missing: model\.layers\.3.* and \d+ more")


def test_a_number_of_layers_that_the_files_lack(folder):
    change_config(folder, num_hidden_layers=99_999)
    refused(folder, "config.json says num_hidden_layers = 99999, the weights are of 3 layers")


def test_a_number_of_layers_that_no_model_has(folder):
    change_config(folder, num_hidden_layers=1_000_000_000)
    refused(folder, r"config\.json: num_hidden_layers = 1000000000 should be less than")


def test_extras_that_transformers_ignores(folder):
    extras = ["mtp.fc.weight", "model.visual.patch.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"]
    change_tensors(folder, lambda held: held.update({name: np.ones(2, np.float32) for name in extras}))
    assert load_pretrained(folder)[1] == CONFIG


def renamed(folder, rename):
    held = load_file(folder / "model.safetensors")
    save_file({rename(name): values for name, values in held.items()}, folder / "model.safetensors")


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: f"base_model.model.{name}",
        lambda name: name.removeprefix("model."),
        lambda name: name.replace("model.", "model._orig_mod."),
    ],
)
def test_names_of_wrapped_models_are_read(folder, rename):
    expected = load_pretrained(folder)[0]
    renamed(folder, rename)
    jax.tree.map(np.testing.assert_array_equal, load_pretrained(folder)[0], expected)


def test_a_model_without_its_head(folder):
    change_tensors(folder, lambda held: held.pop("lm_head.weight"))
    renamed(folder, lambda name: name.removeprefix("model."))
    refused(folder, r"missing: lm_head\.weight$")


def test_names_that_become_one(folder):
    change_tensors(folder, lambda held: held.update({Q.replace("self", "_orig_mod.self"): held[Q]}))
    refused(folder, "two tensors have one name")


def test_adapters(folder):
    change_tensors(folder, lambda held: held.update({f"base_model.model.{Q}.lora_A.weight": np.ones(2, np.float32)}))
    refused(folder, r"holds adapter weights \(base_model.*merge_and_unload")
    for name in ("model.safetensors", "config.json"):
        (folder / name).unlink()
    (folder / "adapter_config.json").write_text("{}")
    refused(folder, r"holds an adapter \(LoRA\) without its base model; merge")


def test_a_folder_of_gguf_files(folder):
    for name in ("model.safetensors", "config.json"):
        (folder / name).unlink()
    (folder / "it.Q4.gguf").write_bytes(b"GGUF")
    refused(folder, r"holds GGUF weights; convert them first: python -m motab_jax\.models\.hf\.gguf \S+ .*it\.Q4\.gguf")


def test_a_runs_folder(folder, tmp_path):
    (tmp_path / "run").mkdir()
    folder.rename(tmp_path / "run" / "export")
    refused(tmp_path / "run", "a run's folder; its model is .*export")


def test_names_are_printed_without_their_control_characters(folder):
    name = "evil\x1b[31m\u202e"
    change_tensors(folder, lambda held: held.update({name: np.ones(2, np.float32)}))
    refused(folder, r"unexpected: evil\\x1b\[31m\\u202e$")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(folder, dtype, bad):
    def change(held):
        held[name] = held[name].astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
        held[name].reshape(-1)[-1] = bad

    name = "model.layers.2.mlp.down_proj.weight"
    change_tensors(folder, change)
    refused(folder, f"the tensor {name} holds NaN or infinity")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_largest_numbers_are_finite(dtype):
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    largest = ml_dtypes.finfo(kind).max
    values = np.array([largest, -largest, 0, -0.0, ml_dtypes.finfo(kind).smallest_subnormal], kind)
    assert is_finite(values) and is_finite(np.empty([0, 3], kind))
    for bad in (np.inf, -np.inf, np.nan, -np.nan):
        assert not is_finite(np.append(values, kind.type(bad)))


def test_head_of_another_tying(folder):
    change_tensors(folder, lambda held: held.pop("lm_head.weight"))
    refused(folder, r"missing: lm_head\.weight")


def test_dtype_refused(folder):
    change_tensors(folder, lambda held: held.update({Q: held[Q].astype(np.int8)}))
    refused(folder, f"{folder}: the tensor {Q} is stored as I8")


@pytest.mark.parametrize("keep", [0, 5, 200, -1, -500])
def test_half_downloaded(folder, keep):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    refused(folder, r"model\.safetensors: not a complete safetensors file")


def test_a_pointer_instead_of_the_file(folder):
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    refused(folder, "not a complete safetensors file")


def test_shard_missing(sharded):
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.unlink()
    refused(sharded, f"{shard.name}: the file is missing, though the index names it")


def test_the_index_names_tensors_that_no_file_holds(sharded):
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.layers.7.ghost"] = index["weight_map"][Q]
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(sharded, r"index\.json: names tensors that model-\S+ does not hold: model\.layers\.7\.ghost")


def test_a_tensor_is_read_from_the_file_that_the_index_names(sharded):
    expected = load_pretrained(sharded)[0]
    shards = sorted(sharded.glob("*.safetensors"))
    owner = next(path for path in shards if Q in load_file(path))
    other = next(path for path in reversed(shards) if path != owner)
    save_file(load_file(other) | {Q: np.zeros_like(load_file(owner)[Q])}, other)
    jax.tree.map(np.testing.assert_array_equal, load_pretrained(sharded)[0], expected)


def test_one_file_and_an_index(sharded, folder):
    (folder / "model.safetensors").rename(sharded / "model.safetensors")
    refused(sharded, r"holds model\.safetensors and also the files of model\.safetensors\.index\.json; remove those")
    sorted(sharded.glob("model-*.safetensors"))[0].unlink()  # an index without all of its files is a leftover
    assert load_pretrained(sharded)[1] == CONFIG


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": {"a": 1}}, {"weight_map": [1]}])
def test_index_says_nothing(sharded, index):
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(sharded, "weight_map does not say")


def test_index_points_outside(sharded):
    index = {"weight_map": {"a": "../m/model.safetensors"}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(sharded, "is not a file of this folder")


def test_pickled_weights_are_refused(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(folder, r"only pickled weights \(pytorch_model\.bin\).*safetensors")


def test_no_weights(folder):
    (folder / "model.safetensors").unlink()
    refused(folder, r"holds neither model\.safetensors nor model\.safetensors\.index\.json")


def test_generation_config(folder):
    assert load_generation_config(folder) == {}
    (folder / "generation_config.json").write_text("{")
    with pytest.raises(UserError, match=r"generation_config\.json: broken JSON"):
        load_generation_config(folder)


def test_find_folder_takes_text_and_paths(folder):
    assert find_folder(folder) == find_folder(str(folder)) == folder
