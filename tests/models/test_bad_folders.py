"""Every way a model folder can be wrong gets one clear error."""

import json

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors.numpy import load_file, save_file

from motab_jax.config import UserError
from motab_jax.models import load_pretrained, save_pretrained
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


@pytest.mark.parametrize(
    "error", [LocalEntryNotFoundError("no\nnetwork"), HFValidationError("bad id"), ConnectionError("reset")]
)
def test_hub_out_of_reach(error, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    refused("someone/a-model", "someone/a-model: neither a folder here nor a model that the hub gives us")


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


@pytest.mark.parametrize(("text", "message"), [('{"a":\n ]', "broken JSON at line 2"), ("[]", "a list"), ("\xff", "")])
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


def test_head_of_another_tying(folder):
    change_tensors(folder, lambda held: held.pop("lm_head.weight"))
    refused(folder, r"missing: lm_head\.weight")


def test_dtype_refused(folder):
    change_tensors(folder, lambda held: held.update({Q: held[Q].astype(np.int8)}))
    refused(folder, f"{Q} is stored as I8")


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
