"""Reading and writing a configuration: sparse YAML over defaults, strict about keys.

YAML is read by OmegaConf (safe loading), overrides are `section.key=value` words, and pydantic checks types and ranges.
"""

import difflib
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from motab_jax.config.errors import UserError
from motab_jax.config.methods import METHODS
from motab_jax.config.presets import PRESETS
from motab_jax.config.sections import Config


def load_config(path: str | Path | None, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Read a sparse YAML file and `section.key=value` overrides into a `Config`.

    A method sets keys where it is named: one in the file stands under the file's keys, one among the overrides stands
    over the file and under the other overrides. So does a preset, of the keys that describe its data.

    Raises UserError for a missing or broken file, an unknown key (with the nearest valid one) and a bad value.
    """
    written: Any = OmegaConf.create({}) if path is None else _read_yaml(Path(path))
    for word in overrides:
        if "=" not in word or word.startswith("-"):
            raise UserError(f"'{word}' is not an override; write section.key=value, for example run.steps=50")
    try:
        words = OmegaConf.from_dotlist(list(overrides))
        layers = (
            part
            for given in (_give_way(written, words), words)
            for part in (_method_table(given), _preset_defaults(given), given)
        )
        plain = OmegaConf.to_container(OmegaConf.merge(*layers), resolve=True)
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(f"{path or 'overrides'}: {_first_line(error)}") from None
    try:
        return Config.model_validate(plain)
    except ValidationError as error:
        raise UserError(_explain(error, path)) from None


def _method_table(tree: Any) -> Any:
    """What the method named in the tree sets; an unknown name is left to the types to refuse."""
    name = tree.get("method")
    return OmegaConf.create(METHODS[name]() if isinstance(name, str) and name in METHODS else {})


def _preset_defaults(tree: Any) -> Any:
    """What the presets of `data` and `eval` set; a list of them is left to `EvalSection.benchmarks`."""
    named = {section: _preset(tree, section) for section in PRESETS}
    return OmegaConf.create(
        {key: PRESETS[key][name] for key, name in named.items() if isinstance(name, str) and name in PRESETS[key]}
    )


def _give_way(written: Any, words: Any) -> Any:
    """The file's tree; where a word names a preset, without the section's keys that describe another data set."""
    for section, table in PRESETS.items():
        if _preset(words, section) is not None and OmegaConf.is_dict(written.get(section)):
            for key in {"preset", *(key for preset in table.values() for key in preset)}:
                written[section].pop(key, None)
    return written


def _preset(tree: Any, section: str) -> Any:
    own = tree.get(section)
    return own.get("preset") if OmegaConf.is_dict(own) else None


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML text; `load_config` reads it back to an equal tree."""
    plain = config.model_dump(mode="json")
    if isinstance(config.eval.preset, tuple):  # a key written down would win over what each of them sets
        plain["eval"] = config.eval.model_dump(mode="json", exclude_unset=True)
    return OmegaConf.to_yaml(OmegaConf.create(plain))


def _read_yaml(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"{path}: no such configuration file; give a YAML file, or none for the quickstart recipe")
    try:
        tree = OmegaConf.load(path)
    except (OmegaConfBaseException, yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: not a readable YAML file: {_first_line(error)}") from None
    if not OmegaConf.is_dict(tree):
        raise UserError(f"{path}: expected sections such as 'run:' and 'student:' at the top level")
    return tree


def _first_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) < 300 else text[:300] + " ..."


def describe_keys(model: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """A line for each key that takes a value: its name, its default (nothing: empty) and what there is to say of it."""
    lines = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            lines += describe_keys(kind, f"{prefix}{name}.")
            continue
        default = field.get_default(call_default_factory=True)
        said = "" if default is None else _yaml_word(default)
        lines.append(f"{prefix}{name}={said}" + (f"  # {field.description}" if field.description else ""))
    return lines


def _yaml_word(value: Any) -> str:
    """A value as it is written in YAML, on one line."""
    return str(yaml.safe_dump(value, default_flow_style=True, width=1000)).removesuffix("...\n").strip()


def valid_keys(model: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """Every key of the tree, dotted: the vocabulary that unknown keys are compared with."""
    keys = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        keys.append(prefix + name)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            keys += valid_keys(kind, f"{prefix}{name}.")
    return keys


def _explain(error: ValidationError, path: str | Path | None) -> str:
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            near = difflib.get_close_matches(key, valid_keys(), n=1, cutoff=0.0)
            lines.append(f"unknown key '{key}'; the nearest valid key is '{near[0]}'")
        else:
            reason = problem["msg"].removeprefix("Value error, ")
            lines.append(f"{key} = {problem['input']!r}: {reason}" if key else reason)
    return f"{path or 'configuration'}: " + "; ".join(lines)
