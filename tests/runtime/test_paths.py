"""Recipes are found by name, in a checkout and in an installed copy."""

import pytest

from motab_jax.config import UserError
from motab_jax.runtime.paths import recipe_path


def lay_out(root, folder):
    (root / folder).mkdir(parents=True)
    (root / folder / "tiny.yaml").write_text("run: {}\n")
    (root / "motab_jax").mkdir(exist_ok=True)
    return root / "motab_jax"


def test_in_a_checkout(tmp_path):
    package = lay_out(tmp_path, "configs")
    (tmp_path / "setup.py").write_text("")
    assert recipe_path("tiny", package) == recipe_path("tiny.yaml", package) == tmp_path / "configs" / "tiny.yaml"


def test_in_an_installed_copy(tmp_path):
    package = lay_out(tmp_path, "motab_jax/configs")
    assert recipe_path("tiny", package) == tmp_path / "motab_jax" / "configs" / "tiny.yaml"
    with pytest.raises(UserError, match="no recipe 'huge'; the shipped ones are: tiny"):
        recipe_path("huge", package)
