"""The walk through the code is true: its functions and values exist, its calls are those of a real run."""

import ast
import json
import os
import re
import subprocess
import sys

import jax
import pytest

from tests.docs.pages import ROOT, blocks

WALK = ROOT / "docs" / "walk.md"
PACKAGE = ROOT / "motab_jax"
STATIONS = [re.split(r"(?<!\\)\|", line)[1:-1] for line in WALK.read_text().splitlines() if re.match(r"\| \d+ ", line)]
MAX_STATIONS = 12
MAX_PRODUCT, MAX_KL = 11, 14


def functions(tree: ast.AST, inside: str = "") -> set[str]:
    """Qualified names of all functions of a file, those inside others by their own names too."""
    names = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            if isinstance(node, ast.FunctionDef):
                names |= {node.name, inside + node.name}
            names |= functions(node, f"{inside}{node.name}." if isinstance(node, ast.ClassDef) else "")
        else:
            names |= functions(node, inside)
    return names


def fields() -> set[str]:
    """`Class.field` for every annotated field of the package's classes."""
    return {
        f"{node.name}.{item.target.id}"
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
        for item in node.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    }


def missing(places: list[str]) -> list[str]:
    """Those of `path::function` that don't exist."""

    def exists(path: str, function: str) -> bool:
        file = PACKAGE / path
        return file.is_file() and function in functions(ast.parse(file.read_text()))

    return [place for place in places if not exists(*place.split("::"))]


def test_stations_are_few_and_in_order():
    assert [int(row[0]) for row in STATIONS] == list(range(1, len(STATIONS) + 1))
    assert 0 < len(STATIONS) <= MAX_STATIONS


def test_every_function_of_the_walk_exists():
    named = re.findall(r"[\w/]+\.py::[\w.]*\w", WALK.read_text())
    assert len(named) >= len(STATIONS)
    assert missing(named) == []
    assert missing(["train.py::walk", "nowhere.py::work"]) == ["train.py::walk", "nowhere.py::work"]


def test_every_station_has_a_value_that_exists():
    assert {value for row in STATIONS for value in re.findall(r"`([^`]+)`", row[2])} <= fields()
    assert all("`" in row[2] and row[3].strip() for row in STATIONS)


@pytest.fixture(scope="module")
def stacks(tmp_path_factory) -> dict[str, list[list[str]]]:
    """The calls of a run on the shipped pair, with one device, as a user's machine has."""
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", "")).strip()
    compiled = os.environ.get("JAX_COMPILATION_CACHE_DIR") or jax.config.values["jax_compilation_cache_dir"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        [sys.executable, "-m", "tests.docs.frames", str(tmp_path_factory.mktemp("runs"))],
        env={**environment, **({"JAX_COMPILATION_CACHE_DIR": compiled} if compiled else {})},
        cwd=ROOT, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads(process.stdout)


def test_the_calls_to_a_decoded_token_are_few_and_those_of_the_walk(stacks):
    [shown] = [block.text.split() for block in blocks(WALK) if "rollout/" in block.text]
    assert shown in stacks["product"]
    assert len(shown) == min(map(len, stacks["product"])) <= MAX_PRODUCT, "the student's; the teacher's may be longer"


def test_the_calls_to_the_kl_are_few_and_those_of_the_walk(stacks):
    [shown] = [block.text.split() for block in blocks(WALK) if "divergence" in block.text]
    assert stacks["kl"] == [shown]
    assert len(shown) <= MAX_KL
