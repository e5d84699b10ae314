"""Models in and out of Hugging Face folders: safetensors and config.json, tensor by tensor.

Host memory: a weight is stacked over its layers, so loading holds one stacked weight at a time on the host (its layers
are copied into it one by one), or one device's shard of a sharded weight; saving holds one layer of one weight. Device
memory holds the model. Each process reads the shards of its own devices and no more.
Left out: pickled weights, quantized weights, and finding or downloading the folder (runtime/hub.py).
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from motab_jax.config import UserError
from motab_jax.models.architecture import ModelConfig
from motab_jax.models.hf import weight_names
from motab_jax.models.hf.tensorfile import Entry, TensorFiles, listed, other_contents, write_tensors
from motab_jax.models.hf.tokenizer_files import copy_tokenizer_files, write_tokenizer_files
from motab_jax.models.transformer import Params
from motab_jax.runtime.distributed import barrier, is_main
from motab_jax.runtime.hub import find_folder, load_generation_config, read_json, replaced, write_json
from motab_jax.runtime.storage import AnyPath

ShardingsOf = Callable[[ModelConfig], Any]
MAX_SHARD_BYTES = 5_000_000_000
WRITING_SECONDS = 3600  # that the other processes wait for the first to write a model
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# Keys of a source's config.json that may be wrong for the saved model, whose layers may be fewer.
NOT_CARRIED = {
    *("torch_dtype", "layer_types", "max_window_layers", "sliding_window", "use_sliding_window"),
    *("quantization_config", "auto_map", "_name_or_path", "transformers_version"),
}


def load_pretrained(
    path_or_hub_id: str | Path, dtype: Any = None, *, shardings: ShardingsOf | None = None
) -> tuple[Params, ModelConfig]:
    """(params, config) of a Hugging Face folder or hub id.

    Args:
      path_or_hub_id: a folder, or OWNER/NAME on the hub.
      dtype: of all weights; None keeps the files' own (where they mix several, the narrowest that holds them all).
      shardings: from the config to the shardings of the parameters, a tree like theirs; None: the first device.

    Raises:
      UserError: a folder or file is missing, damaged or pickled, the architecture is not implemented, tensors are
          missing, unexpected or misshapen (they are listed by name), or one holds NaN or infinity.
    """
    folder = find_folder(path_or_hub_id)
    config = _config_of(folder)
    with TensorFiles(folder, weight_names.plain_names) as files:
        _check_tensors(files, config, folder)
        wanted = weight_names.tensors(config)
        stored = jnp.result_type(*{files.dtype(tensor.name) for tensor in wanted})
        target = stored if dtype is None else jnp.dtype(dtype)
        groups: dict[weight_names.Path, list[weight_names.Tensor]] = {}
        for tensor in wanted:
            groups.setdefault(tensor.path, []).append(tensor)
        shapes = {path: spec.shape for path, spec in weight_names.flat_specs(config).items()}
        layout: Any = None if shardings is None else flax.traverse_util.flatten_dict(shardings(config))
        flat = {}
        for path, group in groups.items():
            read = functools.partial(_read, files, group, shapes[path], target)
            sharding = None if layout is None else layout[path]
            # Waiting frees the host's copy before the next weight is read.
            flat[path] = jax.block_until_ready(_load_weight(read, shapes[path], sharding))
    return flax.traverse_util.unflatten_dict(flat), config


def read_config(path_or_hub_id: str | Path) -> ModelConfig:
    """The architecture of a Hugging Face folder or hub id, without its weights. UserError as from `load_pretrained`."""
    return _config_of(find_folder(path_or_hub_id, ["config.json", "adapter_config.json"]))


def _config_of(folder: Path) -> ModelConfig:
    file = folder / "config.json"
    found = None if file.exists() else other_contents(folder)
    if found:
        raise UserError(f"{folder}: {found}")
    return ModelConfig.from_hf(read_json(file), str(file))


def _load_weight(read: Callable[[weight_names.Spans], np.ndarray], shape: tuple[int, ...], sharding: Any) -> jax.Array:
    """A weight on its devices, read one device's shard at a time."""
    if sharding is None:
        return jax.device_put(read(tuple((0, size) for size in shape)))

    read = functools.cache(read)  # several devices may hold the same shard

    def part(index: Any) -> np.ndarray:
        return read(tuple(cut.indices(size)[:2] for cut, size in zip(index, shape, strict=True)))

    return jax.make_array_from_callback(shape, sharding, part)


def _read(
    files: TensorFiles,
    group: list[weight_names.Tensor],
    shape: tuple[int, ...],
    dtype: np.dtype,
    spans: weight_names.Spans,
) -> np.ndarray:
    """These spans of one weight, stacked over its layers if it has any."""
    values = np.empty([end - first for first, end in spans], dtype)
    for name, _, path, layer in group:
        if layer is None:
            values[...] = weight_names.from_hf(
                path, files.read(name, weight_names.part_of(path, spans, shape)), values.shape
            )
        elif spans[0][0] <= layer < spans[0][1]:
            stored = files.read(name, weight_names.part_of(path, spans[1:], shape[1:]))
            values[layer - spans[0][0]] = weight_names.from_hf(path, stored, values.shape[1:])
    return values


def _check_tensors(files: TensorFiles, config: ModelConfig, folder: Path) -> None:
    names = files.names()
    if config.num_layers > len(names):  # before anything is made for each layer
        raise UserError(
            f"{folder}: config.json says num_hidden_layers = {config.num_layers}, the weights are of "
            f"{weight_names.layers_in(names)} layers"
        )
    expected = {tensor.name: tensor.shape for tensor in weight_names.tensors(config)}
    if config.tied and weight_names.HEAD_NAME in names:
        names.remove(weight_names.HEAD_NAME)
        if weight_names.EMBED_NAME in names and not files.equal(weight_names.HEAD_NAME, weight_names.EMBED_NAME):
            raise UserError(
                f"{folder}: config.json ties the head to the embedding (tie_word_embeddings), but "
                f"{weight_names.HEAD_NAME} differs from {weight_names.EMBED_NAME}"
            )
    misshapen = [
        f"{name} {list(files.shape(name))} instead of {list(expected[name])}"
        for name in sorted(names & set(expected))
        if files.shape(name) != expected[name]
    ]
    kinds = {
        "missing": sorted(set(expected) - names),
        "unexpected": sorted(names - set(expected)),
        "misshapen": misshapen,
    }
    wrong = [f"{kind}: {listed(names)}" for kind, names in kinds.items() if names]
    if wrong:
        raise UserError(f"{folder}: the weights do not fit config.json; {'; '.join(wrong)}")


def save_pretrained(
    folder: str | AnyPath,
    params: Params,
    config: ModelConfig,
    *,
    tokenizer: Any = None,
    source: str | Path | None = None,
    generation_config: dict[str, Any] | None = None,
    chat_template: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write a folder that transformers and vLLM load: weights, config.json, tokenizer, generation_config.json.

    The folder appears, or replaces an older model, when it is complete. In a run of several processes all of them call
    this; the first writes.

    Args:
      folder: where to write.
      params: parameters in training form.
      config: their architecture.
      tokenizer: a transformers tokenizer to save with the model; None: the files of `source` are copied as they are.
      source: the folder or hub id that the model came from. What its config.json says beyond the architecture, such
          as token ids, is kept, and its generation_config.json too unless `generation_config` is given.
      generation_config: what generation_config.json says; its token ids are repeated in config.json.
      chat_template: written with the files of `source` where these have none.
      max_shard_bytes: the most bytes of weights in one file.

    Raises:
      UserError: the folder cannot be written or holds something else than a model.
    """
    entries = _entries(params, config)
    raw, generation = _configs(params, config, source, generation_config)
    if is_main():
        with replaced(folder) as partial:
            write_tensors(partial, entries, max_shard_bytes)
            if tokenizer is not None:
                write_tokenizer_files(tokenizer, partial)
            elif source is not None:
                copy_tokenizer_files(source, partial, chat_template)
            write_json(partial / "config.json", raw)
            if generation:
                write_json(partial / "generation_config.json", generation)
    else:
        write_tensors(None, entries, max_shard_bytes)
    barrier(f"{folder} is written", WRITING_SECONDS)


def _configs(params: Params, config: ModelConfig, source: Any, generation: dict | None) -> tuple[dict, dict]:
    """What config.json and generation_config.json say."""
    carried: dict[str, Any] = {}
    if source is not None:
        raw = read_json(find_folder(source, ["config.json"]) / "config.json")
        carried = {key: value for key, value in raw.items() if key not in NOT_CARRIED}
        generation = load_generation_config(source) if generation is None else generation
    generation = dict(generation or {})
    ids = {key: generation[key] for key in TOKEN_IDS if key in generation}
    return {**carried, **ids, **config.to_hf(), "dtype": params["embed"].dtype.name}, generation


def _entries(params: Params, config: ModelConfig) -> list[Entry]:
    """The tensors to write. ValueError if params are not those of the config."""
    flat: Any = flax.traverse_util.flatten_dict(params)
    specs = weight_names.flat_specs(config)
    if {path: weight.shape for path, weight in flat.items()} != {path: spec.shape for path, spec in specs.items()}:
        raise ValueError("the parameters' names and shapes are not those of the config")

    def entry(tensor: weight_names.Tensor) -> Entry:
        weight = flat[tensor.path]
        return Entry(tensor.name, tensor.shape, np.dtype(weight.dtype), functools.partial(_as_stored, weight, tensor))

    return [entry(tensor) for tensor in weight_names.tensors(config)]


def _as_stored(weight: Any, tensor: weight_names.Tensor) -> np.ndarray:
    """One tensor of the (stacked) weight as the file stores it."""
    return weight_names.to_hf(tensor.path, _gathered(weight if tensor.layer is None else weight[tensor.layer]))


def _gathered(weight: Any) -> np.ndarray:
    """The whole array on this host, wherever its shards are."""
    if isinstance(weight, jax.Array) and not weight.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(weight, tiled=True))
    return np.asarray(weight)
