"""JSON Schema, as much of draft 2020-12 as the record's schema uses; a keyword beyond that is an error."""

import json
from pathlib import Path
from typing import Any

from motab_jax.rollout import record

RECORD_SCHEMA = json.loads(Path(record.__file__).with_name("record.schema.json").read_text())
TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
NOTES = {"$schema", "$defs", "title", "description"}


def is_type(value: Any, name: str) -> bool:
    if name in ("integer", "number"):
        return isinstance(value, int if name == "integer" else int | float) and not isinstance(value, bool)
    return isinstance(value, TYPES[name])


def faults(value: Any, schema: dict, root: dict | None = None, at: str = "") -> list[str]:
    """What in a value breaks the schema; a bound of numbers or lengths says nothing about other types."""
    root = schema if root is None else root
    found = []
    for keyword, wanted in schema.items():
        if keyword not in NOTES:
            found += CHECKS[keyword](value, wanted, schema, root, at)
    return found


def _type(value, wanted, schema, root, at):
    names = [wanted] if isinstance(wanted, str) else wanted
    return [] if any(is_type(value, name) for name in names) else [f"{at}: not {' or '.join(names)}"]


def _ref(value, wanted, schema, root, at):
    assert wanted.startswith("#/$defs/")
    return faults(value, root["$defs"][wanted.removeprefix("#/$defs/")], root, at)


def _any_of(value, wanted, schema, root, at):
    each = [faults(value, one, root, at) for one in wanted]
    return [] if [] in each else [fault for found in each for fault in found]


def _properties(value, wanted, schema, root, at):
    members = value.items() if isinstance(value, dict) else ()
    return [fault for key, item in members if key in wanted for fault in faults(item, wanted[key], root, f"{at}.{key}")]


def _additional(value, wanted, schema, root, at):
    assert wanted is False
    extra = value.keys() - schema["properties"].keys() if isinstance(value, dict) else ()
    return [f"{at}: unknown {key}" for key in extra]


def _required(value, wanted, schema, root, at):
    return [f"{at}: without {key}" for key in wanted if isinstance(value, dict) and key not in value]


def _items(value, wanted, schema, root, at):
    members = enumerate(value) if isinstance(value, list) else ()
    return [fault for number, item in members for fault in faults(item, wanted, root, f"{at}[{number}]")]


def _enum(value, wanted, schema, root, at):
    return [] if value in wanted else [f"{at}: not one of {wanted}"]


def _bound(wrong, kind):
    def check(value, wanted, schema, root, at):
        return [f"{at}: {value!r} against {wanted}"] if is_type(value, kind) and wrong(value, wanted) else []

    return check


CHECKS = {
    "type": _type,
    "$ref": _ref,
    "anyOf": _any_of,
    "properties": _properties,
    "additionalProperties": _additional,
    "required": _required,
    "items": _items,
    "enum": _enum,
    "minimum": _bound(lambda value, wanted: value < wanted, "number"),
    "maximum": _bound(lambda value, wanted: value > wanted, "number"),
    "minLength": _bound(lambda value, wanted: len(value) < wanted, "string"),
    "minItems": _bound(lambda value, wanted: len(value) < wanted, "array"),
}
