"""What in a value breaks a JSON schema (draft 2020-12)."""

import json
from pathlib import Path
from typing import Any

import jsonschema

from motab_jax.rollout import record

RECORD_SCHEMA = json.loads(Path(record.__file__).with_name("record.schema.json").read_text())


def faults(value: Any, schema: dict) -> list[str]:
    """One message each; none where the value is valid. The schema itself is checked, too."""
    jsonschema.Draft202012Validator.check_schema(schema)
    return [
        f"{error.json_path}: {error.message}" for error in jsonschema.Draft202012Validator(schema).iter_errors(value)
    ]
