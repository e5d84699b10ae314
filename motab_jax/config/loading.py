"""Reading and writing a configuration: sparse YAML over defaults, strict about keys.

Overrides are `section.key=value` words; pydantic checks types and ranges. Left out: interpolation; `${...}` is text.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

import yaml
from pydantic import BaseModel, ValidationError

from motab_jax.config.errors import UserError
from motab_jax.config.methods import METHODS
from motab_jax.config.presets import PRESETS
from motab_jax.config.sections import Config
from motab_jax.config.yaml_text import read_override, read_yaml, write_yaml, write_yaml_line

Tree = dict[str, Any]


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read a sparse YAML file and `section.key=value` overrides into a `Config`.

    A method sets keys where it is named: in the file, below the file's own keys; among the overrides, above the file
    and below the other overrides. So does a preset, for the keys that describe its data.

    Args:
      path: the YAML file; None for the defaults alone.
      overrides: words `section.key=value`, later ones over earlier ones; `read_override` says what a value may be.

    Returns:
      The checked configuration.

    Raises:
      UserError: for a missing or broken file, an unknown key (with the nearest valid one) or a bad value. It names
          the file or the override.
    """
    in_file = {} if path is None else _read_file(Path(path))
    in_words: Tree = {}
    for word in overrides:
        in_words = _merge(in_words, _override(word))
    tree: Tree = {}
    for layer in (_without_other_presets_keys(in_file, in_words), in_words):
        for defaults in (_method_table(layer), _preset_defaults(layer), layer):
            tree = _merge(tree, defaults)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(_explain(error, path, overrides)) from None


def _override(word: str) -> Tree:
    """The tree of one override: its value under its dotted key."""
    key, equals, text = word.partition("=")
    if not equals or key.startswith("-"):
        raise UserError(f"'{word}' is not an override; write section.key=value, for example run.steps=50")
    value = read_override(text)
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


def _merge(below: Any, above: Any) -> Any:
    """Two trees as one: mappings key by key; of anything else `above` is taken."""
    if not (_is_tree(below) and _is_tree(above)):
        return above
    return below | {key: _merge(below[key], value) if key in below else value for key, value in above.items()}


def _is_tree(value: object) -> TypeGuard[Tree]:
    return isinstance(value, dict)


def _method_table(tree: Tree) -> Tree:
    """What the method named in the tree sets; an unknown name is left to the types to refuse."""
    name = tree.get("method")
    return METHODS[name]() if isinstance(name, str) and name in METHODS else {}


def _preset_defaults(tree: Tree) -> Tree:
    """What the presets of `data` and `eval` set; a list of them is left to `EvalSection.benchmarks`."""
    named = {section: _preset(tree, section) for section in PRESETS}
    return {key: PRESETS[key][name] for key, name in named.items() if isinstance(name, str) and name in PRESETS[key]}


def _without_other_presets_keys(in_file: Tree, in_words: Tree) -> Tree:
    """The file's tree; where a word names a preset, without the section's keys that describe another data set."""
    kept = dict(in_file)
    for section, table in PRESETS.items():
        content = kept.get(section)
        if _preset(in_words, section) is not None and _is_tree(content):
            describing = {"preset", *(key for preset in table.values() for key in preset)}
            kept[section] = {key: value for key, value in content.items() if key not in describing}
    return kept


def _preset(tree: Tree, section: str) -> Any:
    content = tree.get(section)
    return content.get("preset") if _is_tree(content) else None


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML text; `load_config` reads it back to an equal tree."""
    plain = config.model_dump(mode="json")
    if isinstance(config.eval.preset, tuple):  # a key in the file would win over the presets' own
        plain["eval"] = config.eval.model_dump(mode="json", exclude_unset=True)
    return write_yaml(plain)


def _read_file(path: Path) -> Tree:
    if not path.is_file():
        raise UserError(f"{path}: no such configuration file; give a YAML file, or none for the quickstart recipe")
    try:
        tree = read_yaml(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: not a readable YAML file: {_first_line(error)}") from None
    if tree is None:
        return {}
    if not _is_tree(tree):
        raise UserError(f"{path}: expected sections such as 'run:' and 'student:' at the top level")
    return tree


def _first_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) < 300 else text[:300] + " ..."


def describe_keys(model: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """A line of help for each key that takes a value: its name, its default and its description."""
    lines: list[str] = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            lines += describe_keys(kind, f"{prefix}{name}.")
            continue
        default = field.get_default(call_default_factory=True)
        shown = "" if default is None else write_yaml_line(default)
        lines.append(f"{prefix}{name}={shown}" + (f"  # {field.description}" if field.description else ""))
    return lines


def valid_keys(model: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """Every key of the tree, dotted; unknown keys are compared with them."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        keys.append(prefix + name)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            keys += valid_keys(kind, f"{prefix}{name}.")
    return keys


def _explain(error: ValidationError, path: str | Path | None, overrides: Sequence[str]) -> str:
    """The problems in one line, each with the override or the file that it is in."""
    reasons: dict[str, list[str]] = {}
    for problem in error.errors():
        key = ".".join(str(name) for name in problem["loc"])
        if problem["type"] == "extra_forbidden":
            near = difflib.get_close_matches(key, valid_keys(), n=1, cutoff=0.0)
            reason = f"unknown key '{key}'; the nearest valid key is '{near[0]}'"
        else:
            reason = problem["msg"].removeprefix("Value error, ")
            reason = f"{key} = {problem['input']!r}: {reason}" if key else reason
        reasons.setdefault(_origin(key, path, overrides), []).append(reason)
    return "; ".join(f"{origin}: {'; '.join(parts)}" for origin, parts in reasons.items())


def _origin(key: str, path: str | Path | None, overrides: Sequence[str]) -> str:
    """Where the value at a dotted key comes from: the last override that sets it, else the file."""
    for word in reversed(overrides):
        set_key = word.partition("=")[0]
        if f"{key}.".startswith(f"{set_key}."):
            return f"override {word!r}"
    if "." not in key and overrides:  # several values that don't go together
        return f"{path} with its overrides" if path else "overrides"
    return str(path or "configuration")
