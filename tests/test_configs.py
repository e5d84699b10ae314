"""Recipes and methods: each loads and survives a dump; recipes are sparse, and documents name keys that exist."""

import copy
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from motab_jax.config import METHODS, Config, UserError, dump_config, load_config, valid_keys
from motab_jax.distill import check_targets
from motab_jax.runtime.paths import recipe_path
from motab_jax.training.programs import make_objective

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "configs").glob("*.yaml"))
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Keys that recipes write down for the reader even where they have their defaults.
SHOWN = {
    *("run.name", "run.sample_every", "data.source", "eval.prompts", "rollout.segment_tokens"),
    *("backtrack.target", "backtrack.intervention"),
}

each_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)


def without_one_key(tree: dict) -> Iterator[tuple[str, dict]]:
    """(dotted key, the tree without it) for each key of a section."""
    for section, content in tree.items():
        for key in content if isinstance(content, dict) else []:
            smaller = copy.deepcopy(tree)
            del smaller[section][key]
            yield f"{section}.{key}", smaller


@each_recipe
def test_recipe_loads_and_survives_a_dump(path, tmp_path):
    config = load_config(path)
    again = tmp_path / "again.yaml"
    again.write_text(dump_config(config))
    assert load_config(again) == config


@each_recipe
def test_recipe_is_sparse(path, tmp_path):
    """Without any one key, but for those shown on purpose, the configuration is another one, or none."""
    superfluous = set()
    for key, tree in without_one_key(yaml.safe_load(path.read_text())):
        (tmp_path / path.name).write_text(yaml.safe_dump(tree))
        try:
            if load_config(tmp_path / path.name) == load_config(path):
                superfluous.add(key)
        except UserError:
            continue
    assert superfluous <= SHOWN


@each_recipe
def test_runs_do_not_share_a_folder(path):
    assert load_config(path).run.name == path.stem
    assert recipe_path(path.stem) == path


def test_documents_name_no_key_that_is_not_there():
    sections = "|".join(Config.model_fields)
    for document in DOCUMENTS:
        named = re.findall(rf"`((?:{sections})\.[a-z_0-9]+)(?:=[^`]*)?`", document.read_text())
        suffixes = {"py", "yaml", "json", "jsonl", "md", "txt"}
        unknown = [key for key in named if key not in valid_keys() and key.rpartition(".")[2] not in suffixes]
        assert not unknown, f"{document.name}: {unknown}"


def test_a_method_sets_defaults_under_the_users_keys():
    plain, opd = load_config(None), load_config(None, ["method=opd", "rollout.batch_size=8"])
    assert plain.method == "motab" and plain.monitor.enabled
    assert not opd.monitor.enabled and opd.objective.student_loss.name == "reverse_kl" and opd.rollout.batch_size == 8
    assert load_config(None, ["method=opd", "objective.student_loss=jsd"]).objective.student_loss.name == "jsd"


def test_a_method_among_the_overrides_stands_over_the_file(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("objective: {student_loss: jsd}\nrollout: {batch_size: 8}\n")
    over = load_config(recipe, ["method=opd"])
    assert over.objective.student_loss.name == "reverse_kl" and over.rollout.batch_size == 8
    recipe.write_text("method: opd\nobjective: {student_loss: jsd}\n")
    assert load_config(recipe).objective.student_loss.name == "jsd"
    assert load_config(recipe, ["method=gkd", "rollout.on_policy=1.0"]).rollout.on_policy == 1.0


@pytest.mark.parametrize("method", METHODS)
def test_a_method_loads_and_survives_a_dump(method, tmp_path):
    config = load_config(None, [f"method={method}"])
    (tmp_path / "dumped.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "dumped.yaml") == config


@pytest.mark.parametrize("method", METHODS)
def test_a_method_has_the_targets_that_its_losses_need_on_the_quickstart(method):
    config = load_config(ROOT / "configs" / "quickstart.yaml", [f"method={method}"])
    check_targets(make_objective(config, 74), config.rollout.targets)


@pytest.mark.parametrize("value", ["opds", "[1]", "3"])
def test_an_unknown_method_is_named(value):
    with pytest.raises(UserError, match="method = "):
        load_config(None, [f"method={value}"])
