"""Plans: the arithmetic by hand, the search, what is refused; and, where libtpu is, a plan from end to end."""

import dataclasses
import json
from collections import Counter
from typing import Any, cast

import jax
import jax.numpy as jnp
import pytest

from motab_jax import plan
from motab_jax.config import Config, UserError, load_config
from motab_jax.evaluation.programs import make_evaluation_programs
from motab_jax.models.architecture import ModelConfig
from motab_jax.planning.abstract_session import STOP_IDS, abstract_key, abstract_prompts, open_abstract_session
from motab_jax.planning.aot import CompiledProgram, CompiledRun
from motab_jax.planning.hlo import HloProgram, program_facts
from motab_jax.planning.roofline import (
    cache_bytes_per_token,
    memory_by_arithmetic,
    parameter_counts,
    step_costs,
    step_sizes,
)
from motab_jax.planning.search import Plan, Target, candidate_meshes, largest_that_fits, make_plan
from motab_jax.planning.topologies import Chip
from motab_jax.quickstart import STUDENT, TEACHER
from motab_jax.runtime.mesh import make_mesh
from motab_jax.session.prompts import training_prompts
from motab_jax.session.session import open_session
from motab_jax.training.programs import make_programs

TINY = ModelConfig("qwen3", 10, 4, 8, 2, 4, 2, 2, 64, qk_norm=True)
PROGRAMS = ("teacher relayout", "relayout", "rollout", "update", "evaluation", "digest")
CHIP = Chip(flops=1e6, bandwidth=1e3, memory=1e9, links=1e2)


def config(**changes) -> Config:
    return load_config(None, [f"{key}={value}" for key, value in changes.items()])


def test_parameters_by_hand():
    # A layer: q 4*8, k and v 4*4, o 8*4, three of the MLP 4*8, norms 4+4+2+2, so 204; embedding and head 10*4, norm 4.
    assert parameter_counts(TINY) == (492, 452)
    tied = ModelConfig("qwen3", 10, 4, 8, 2, 4, 2, 2, 64, qk_norm=True, tied=True)
    assert parameter_counts(tied) == (452, 452)


def test_a_token_in_the_cache_by_hand():
    # Keys and values, 2 layers, 2 heads of 2 numbers, 2 bytes each; half a head is held as a full one.
    assert [cache_bytes_per_token(TINY, 2, tensor) for tensor in (1, 2, 4)] == [32, 16, 16]


def small(**changes) -> Config:
    return config(**{"rollout.batch_size": 8, "rollout.max_new_tokens": 16, "data.max_prompt_tokens": 4}, **changes)


def test_decoding_by_hand():
    """Data 2, tensor 2: a device decodes 16 columns of 4 rows, each attending to 4 + 16 / 2 = 12 columns."""
    sizes = step_sizes(small(), {"data": 2, "fsdp": 1, "tensor": 2}, 0.5)
    costs = {cost.name: cost for cost in step_costs(TINY, TINY, sizes, CHIP)}
    decoding = costs["student decodes"]
    # A column: 2 FLOPs for 452 weights and 4 rows; 4 * 2 layers * 4 heads * 2 numbers for 4 rows and 12 columns.
    assert decoding.flops == 16 * (3616 + 3072) / 2
    # 452 float32 weights, half of them; 4 rows of 12 columns of 32 bytes.
    assert decoding.bytes == 16 * (904 + 1536)
    # Two sums in each of 2 layers of 4 rows of 4 float32 numbers, over 2 devices: each number crosses once.
    assert decoding.link_bytes == 16 * 256
    # At 1e6 FLOP/s, 1e3 bytes/s of memory and 1e2 bytes/s of links: 0.05 s, 39.04 s, 40.96 s.
    assert (decoding.seconds, decoding.bound_by) == (40.96, "links")
    assert costs["teacher decodes"].bytes == pytest.approx(0.5 * decoding.bytes), "of half of the columns"


def test_memory_by_hand():
    """Fsdp 2, tensor 2: float32 weights, two moments and a gradient over 4 devices; serving weights over 2."""
    sizes = step_sizes(small(), {"data": 1, "fsdp": 2, "tensor": 2}, 0.3)
    memory = memory_by_arithmetic(TINY, TINY, sizes)
    assert memory["student, moments, gradient"] == 492 * 16 / 4
    assert memory["student, serving"] == memory["teacher"] == 492 * 4 / 2
    assert memory["student's cache"] == 4 * 36 * 32, "4 rows; 4 + 16 columns and a segment's 16; 32 bytes each"


@pytest.mark.parametrize(
    ("cost", "expected"),
    [
        (lambda x: [10.0 * x], 100),  # a straight line
        (lambda x: [900.0, 10.0 * x, 800.0 + x / 2], 100),  # the fullest program is not the one that grows
        (lambda x: [10.0 * x if x < 60 else 15.0 * x], 64),  # dearer than it looked: tried again nearer by
        (lambda x: [2000.0 if x > 8 else 10.0], 8),  # nothing beyond the start fits
    ],
)
def test_the_largest_that_fits(cost, expected):
    found = largest_that_fits(cost, cost(8), 8, 4, 1000, 1000.0)
    assert found == expected and max(cost(found)) <= 1000


def test_the_largest_stays_below_the_positions():
    assert largest_that_fits(lambda x: [1.0], [1.0], 8, 8, 100, 10.0) == 96


def gpu(count: int = 8) -> Target:
    return Target.of(f"gpu:h100x{count}", 0.3)


def test_candidates_divide_the_heads():
    found = candidate_meshes(config(**{"rollout.batch_size": 6}), gpu())
    assert found and all(mesh["data"] * mesh["fsdp"] * mesh["tensor"] == 8 for mesh in found)
    assert {mesh["tensor"] for mesh in found} <= {1, 2, 4}, "the shipped pair has 4 heads"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "topology="),
        (["topology=v9:2x2"], "v4, v5e, v5p, v6e, tpu7x"),
        (["topology=gpu:h100x0"], "such as v5p:4x4x4"),
        (["topology=gpu:h100x8", "mesh=best"], "mesh=.*best"),
        (["topology=gpu:h100x8", "strayed=2"], "strayed=.*2"),
        (["topology=gpu:h100x8", "mesh.tensor=3"], "mesh.tensor=3"),
        (["topology=gpu:h100x8", "--json"], "--json"),
        (["topology=gpu:h100x8", "student.path=/nowhere/at/all"], "no such model folder"),
    ],
)
def test_mistakes_are_named(words, text):
    with pytest.raises(UserError, match=text):
        plan.work(words)


def test_a_plan_by_arithmetic_says_so(capsys, tmp_path):
    file = tmp_path / "plan.json"
    assert plan.work(["topology=gpu:h100x8", "--json", str(file)]) == 0
    said = capsys.readouterr().out
    assert "fits:" in said and "by arithmetic, without temporaries" in said and "student decodes" in said
    found = json.loads(file.read_text())
    assert found["fits"] and not found["compiled"] and found["programs"] == []
    assert 0 < found["needed"] <= found["limit"] and found["largest"]["batch_size"] > 64


def write_shapes(folder, **changes):
    """A folder with nothing but the shipped teacher's config.json, changed."""
    folder.mkdir()
    shape = json.loads((TEACHER / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(shape))
    return folder


def test_what_does_not_fit_leaves_with_3_and_advice(capsys, tmp_path):
    giant = write_shapes(tmp_path / "giant", hidden_size=32768, intermediate_size=131072, num_hidden_layers=64)
    words = [f"teacher.path={giant}", f"student.path={STUDENT}", "topology=gpu:h100x8"]
    assert plan.work(words) == plan.DOES_NOT_FIT
    said = capsys.readouterr().out
    assert "does not fit" in said and "'teacher'" in said and "mesh.tensor" in said


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("teacher relayout", "mesh.tensor"),
        ("rollout", "rollout.batch_size"),
        ("update", "optimizer.remat=full"),
        ("evaluation", "eval.batch_size"),
    ],
)
def test_the_advice_is_for_the_fullest_program(name, advice):
    programs = [CompiledProgram(other, None, 2**30, 2**30 * (90 if other == name else 2), 0.0) for other in PROGRAMS]
    arithmetic = {"teacher": 2e9, "teacher's cache": 3e9}
    sizes = step_sizes(config(), {"data": 8, "fsdp": 1, "tensor": 1}, 0.3)
    said = Plan(config(), gpu(), sizes, [], arithmetic, CompiledRun(programs, 0)).verdict
    assert f"'{name}' needs 89.0 GiB, other arrays 1.0 GiB" in said and advice in said
    assert ("teacher's cache" in said) == (name == "rollout")


def test_the_words_of_the_verb_are_not_configuration():
    given = plan.WORDS.parse(["--json", "x", "topology=v5e:2x2", "run.steps=1", "mesh.data=2", "strayed=0.5"])
    assert (given.json, given.topology, given.strayed, given.mesh, given.largest) == ("x", "v5e:2x2", 0.5, None, True)
    assert (given.config.run.steps, given.config.mesh.data) == (1, 2)


def test_a_plan_for_the_devices_at_hand(devices, tmp_path):
    """A pair of one layer, compiled for 2 CPU devices: a run's programs, and what is in memory while each runs."""
    folder = write_shapes(tmp_path / "model", num_hidden_layers=1)
    words = {"student.path": folder, "teacher.path": folder, "rollout.batch_size": 8, "rollout.max_new_tokens": 16}
    words |= {"mesh.tensor": 2}
    target = Target("cpu", CHIP, 2, devices[:2], 0.3)
    found = make_plan(config(**words), target).as_json()
    programs = {program["name"]: program for program in found["programs"]}
    assert tuple(programs) == PROGRAMS and found["compiled"]
    for program in programs.values():
        facts = program["facts"]
        own = facts["arguments"] + facts["outputs"] - facts["aliased"] + facts["temporaries"]
        assert 0 < own <= program["needed"] == own + program["beside"] <= found["needed"]
    update, rollout = programs["update"]["facts"], programs["rollout"]["facts"]
    assert 0 < update["aliased"] <= update["outputs"], "the state is donated"
    assert rollout["temporaries"] >= found["caches"] > 0, "the caches are among the temporaries"
    assert set(rollout["moved"]) == set(rollout["collectives"]) != set(), "weights are sharded over tensor"


def test_the_planned_rollout_is_the_runs(devices):
    """Compiled for 8 devices: the same instructions. 6 rows on 4 groups of devices, weights over `tensor`."""
    words = {"rollout.batch_size": 6, "rollout.max_new_tokens": 16, "mesh.tensor": 2, "mesh.data": 4, "data.count": 20}
    run = config(**words)
    session = open_session(run)
    prompts = training_prompts(session)
    run = run.model_copy(update={"data": run.data.model_copy(update={"max_prompt_tokens": prompts.width})})
    program: Any = make_programs(session).on_policy
    lowered = program.lower(
        session.serve(session.student.params), session.teacher, prompts.batch(range(6), range(6), session.mesh),
        jax.random.key(0), session.rollout_config.replace(stop_ids=jnp.array(STOP_IDS)),
    )  # fmt: skip
    abstract = open_abstract_session(run, session.mesh)
    teacher = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), session.teacher)
    abstract = dataclasses.replace(abstract, teacher=teacher)
    planned_program: Any = make_programs(abstract).on_policy
    planned = planned_program.lower(
        cast(Any, abstract.to_serving).lower(abstract.student.params).out_info, teacher,
        abstract_prompts(run, session.mesh, 6), abstract_key(session.mesh), abstract.rollout_config,
    )  # fmt: skip
    (ours, facts), (theirs, planned_facts) = (
        (Counter((i.opcode, i.arrays) for i in HloProgram.of(x).instructions), program_facts(x, ()))
        for x in (lowered.compile(), planned.compile())
    )
    assert ours == theirs and facts == planned_facts


def test_the_batch_of_an_evaluation_is_what_the_memory_holds(devices):
    """4 MB more, of which 0.7 is used, hold as many more rows in a group as caches of 4 MB * 0.7 / bytes of a row."""
    run = config(**{"mesh.data": 8})
    session = open_abstract_session(run, make_mesh(8, 1, 1))
    assert session.student.config.num_kv_heads * session.student.config.head_dim == 64
    sizes = (1e6, 12e6, 16e6, 1e12)
    rows = [make_evaluation_programs(session, run.eval, memory=size).rows for size in sizes]
    # Keys and values of 2 layers, 64 + 128 + 32 columns of 64 float32 numbers; three times 74 logits.
    row = 2 * 2 * (64 + 128 + 32) * 64 * 4 + 3 * 74 * 4
    assert rows[0] == 8 and rows[3] == 8 * 64 and rows[2] - rows[1] == pytest.approx(8 * 0.7 * 4e6 / row, abs=8)
    assert make_evaluation_programs(session, config(**{"eval.batch_size": 3}).eval, memory=1.0).rows == 3
    assert make_evaluation_programs(session, run.eval).rows == 128, "a CPU does not say"


@pytest.mark.tpu_aot
def test_a_plan_for_a_slice(capsys, tmp_path):
    pytest.importorskip("libtpu", reason="needs the extra [tpu]")
    file = tmp_path / "plan.json"
    words = ["topology=v5e:2x2", "mesh=find", "largest=false", "rollout.max_new_tokens=32", "--json", str(file)]
    assert plan.work(words) == 0
    assert "mesh data" in capsys.readouterr().out
    found = json.loads(file.read_text())
    assert [program["name"] for program in found["programs"]] == list(PROGRAMS)
    assert all(0 < program["needed"] <= found["needed"] for program in found["programs"])
    assert found["fits"] and found["compiled"] and found["caches"] > 0
