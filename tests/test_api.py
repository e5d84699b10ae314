"""`import motab_jax` gives the main calls by name, and imports them only when they are used."""

import importlib
import inspect
import subprocess
import sys

import pytest

import motab_jax

LIGHT = "import sys, motab_jax; assert not {'jax', 'transformers', 'numpy'} & set(sys.modules); motab_jax.load_config"


def test_every_public_name_is_there_and_documented():
    for name in motab_jax.__all__:
        value = getattr(motab_jax, name)
        assert callable(value) and inspect.getdoc(value), name
        assert name in dir(motab_jax)


def test_importing_the_package_imports_no_library():
    subprocess.run([sys.executable, "-c", LIGHT], check=True, timeout=120)


def test_a_module_and_its_function_of_one_name():
    for name, home in (("train", "motab_jax.training.loop"), ("rollout", "motab_jax.rollout.engine")):
        module = getattr(motab_jax, name)
        function = getattr(importlib.import_module(home), name)
        assert module is importlib.import_module(f"motab_jax.{name}")
        assert getattr(module, name) is function
        assert inspect.signature(module) == inspect.signature(function)
    with pytest.raises(TypeError, match="student"):  # the function's own complaint: it was called without arguments
        getattr(motab_jax, "rollout")()  # noqa: B009


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(motab_jax, "nothing_of_this_name")
