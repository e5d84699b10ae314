"""Checkpoints come back bit for bit, on the devices asked for; damaged ones are named."""

import errno
import math
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motab_jax.config import EnvironmentFailure, UserError
from motab_jax.runtime.checkpoint import Checkpointer, Unreadable
from motab_jax.runtime.mesh import layout_shardings, make_mesh, replicated


def make_state(mesh, seed=0):
    """Sharded weights of two dtypes, optimizer-like nesting, a step, and typed keys of two generators."""
    axes = {"w": ("embed", "mlp"), "b": ("mlp",)}
    key = jax.random.key(seed)
    values = {"w": jax.random.normal(key, (8, 4)), "b": jax.random.normal(key, (4,), jnp.bfloat16)}
    params = jax.device_put(values, layout_shardings(mesh, axes, "update", values))
    rest = {"step": jnp.int32(7), "key": jax.random.key(3), "rows": jax.random.split(jax.random.key(1, impl="rbg"), 4)}
    return {"params": params, "opt": (params["w"] * 2, None), **jax.device_put(rest, replicated(mesh))}


def bits(tree):
    """Every leaf as (dtype, bytes)."""
    plain = jax.tree.map(lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x, tree)
    return jax.tree.map(lambda x: (str(x.dtype), np.asarray(x).tobytes()), plain)


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def test_roundtrip_is_exact_and_sharded(tmp_path):
    state = make_state(make_mesh(1, 4, 2))
    extra = {"prompts": {"position": 12, "names": ["a", "b"]}, "skipped": 0}
    with Checkpointer(tmp_path / "c", keep=2) as checkpointer:
        assert checkpointer.latest() is None
        checkpointer.save(3, state, extra)
        checkpointer.wait()
        found, found_extra = checkpointer.restore(3, abstract(state))
    assert bits(found) == bits(state)
    assert found_extra == extra
    assert jax.tree.map(lambda x: x.sharding, found) == jax.tree.map(lambda x: x.sharding, state)
    assert jax.random.key_impl(found["rows"]) == jax.random.key_impl(state["rows"])
    assert jnp.array_equal(jax.random.uniform(found["key"], (3,)), jax.random.uniform(state["key"], (3,)))


@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 8, 1), (1, 4, 2), (8, 1, 1)], ids=str)
def test_another_mesh_reads_the_same_numbers(sizes, tmp_path):
    state = make_state(make_mesh(1, 2, 4))
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        checkpointer.save(1, state, {})
    devices = jax.devices()[: math.prod(sizes)]
    other = make_state(make_mesh(*sizes, devices=devices), seed=5)
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        found, _ = checkpointer.restore(1, other)
    assert bits(found) == bits(state)
    assert jax.tree.map(lambda x: x.sharding, found) == jax.tree.map(lambda x: x.sharding, other)
    assert found["params"]["w"].sharding.device_set == set(devices)


def test_host_numbers_come_back(tmp_path):
    state = {"scalar": np.float32(1.5), "count": 3, "table": np.arange(4)}
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        checkpointer.save(0, state, {})
        checkpointer.wait()
        found, _ = checkpointer.restore(0, state)
    assert found["scalar"] == np.float32(1.5) and int(found["count"]) == 3
    assert np.array_equal(found["table"], state["table"])


def test_the_newest_are_kept_and_donated_state_is_safe(tmp_path):
    """`save` has its own copy when it returns: the update may reuse the memory while the write goes on."""
    bump = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    state = {"w": jnp.zeros((512, 512))}
    with Checkpointer(tmp_path, keep=2) as checkpointer:
        for step in (1, 2, 3):
            checkpointer.save(step, state, {"step": step})
            state = bump(state)
        checkpointer.wait()
        assert checkpointer.latest() == 3
        for step in (2, 3):
            found, extra = checkpointer.restore(step, state)
            assert np.all(np.asarray(found["w"]) == step - 1) and extra == {"step": step}
        assert not (tmp_path / "1").exists()


def damage_array(folder: Path):
    for path in folder.rglob("*"):
        if path.is_file() and "d" in path.parent.name:
            path.write_bytes(b"")


def largest_file(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def damage_flip(folder: Path):
    data = bytearray(largest_file(folder).read_bytes())
    data[len(data) // 2] ^= 0x10
    largest_file(folder).write_bytes(bytes(data))


def damage_shorten(folder: Path):
    data = largest_file(folder).read_bytes()
    largest_file(folder).write_bytes(data[: len(data) // 2])


def damage_metadata(folder: Path):
    (folder / "state" / "_METADATA").write_text("{")


def damage_extra(folder: Path):
    shutil.rmtree(folder / "extra")


def damage_all(folder: Path):
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def newest(checkpointer, state, said):
    found = checkpointer.restore_newest(state, said.append)
    assert found is not None
    return found


@pytest.mark.parametrize(
    "damage", [damage_flip, damage_shorten, damage_array, damage_metadata, damage_extra, damage_all]
)
def test_a_damaged_checkpoint_is_passed_over_and_kept(tmp_path, damage):
    state, said = {"w": jax.random.normal(jax.random.key(0), (128, 64))}, []
    with Checkpointer(tmp_path / "c", keep=2) as checkpointer:
        checkpointer.save(1, state, {"a": 1})
        checkpointer.save(2, state, {"a": 2})
    damage(tmp_path / "c" / "2")
    left = sorted(path.name for path in (tmp_path / "c" / "2").rglob("*"))
    with Checkpointer(tmp_path / "c", keep=2) as checkpointer:
        assert checkpointer.latest() == 2
        with pytest.raises(Unreadable, match=r"c/2: this checkpoint can't be read"):
            checkpointer.restore(2, state)
        step, restored, extra = newest(checkpointer, state, said)
        assert (step, extra) == (1, {"a": 1}) and checkpointer.latest() == 1
        checkpointer.save(2, state, {"a": 3})
    np.testing.assert_array_equal(restored["w"], state["w"])
    assert len(said) == 1 and "going back to step 1" in said[0] and str(tmp_path / "damaged" / "2") in said[0]
    assert sorted(path.name for path in (tmp_path / "damaged" / "2").rglob("*")) == left, "nothing is deleted"
    with Checkpointer(tmp_path / "c", keep=2) as checkpointer:
        assert newest(checkpointer, state, said)[::2] == (2, {"a": 3}) and len(said) == 1


def test_one_flipped_byte_in_any_file_does_no_harm(tmp_path):
    """In each file in turn: noticed, or in a file of orbax's that neither arrays nor record depend on."""
    state = {"w": jax.random.normal(jax.random.key(0), (128, 64)), "n": jnp.arange(5)}
    with Checkpointer(tmp_path / "c", keep=2) as checkpointer:
        checkpointer.save(1, jax.tree.map(lambda x: x + 1, state), {"a": 1})
        checkpointer.save(2, state, {"a": 2, "b": "text"})
    files = sorted(path for path in (tmp_path / "c" / "2").rglob("*") if path.is_file() and path.stat().st_size)
    noticed = set()
    for file in files:
        whole, name = file.read_bytes(), file.relative_to(tmp_path / "c" / "2")
        middle = len(whole) // 2
        file.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
        with Checkpointer(tmp_path / "c", keep=2) as checkpointer:
            step, restored, extra = newest(checkpointer, state, [])
        if step == 1:
            noticed.add(str(name))
            assert extra == {"a": 1}
            shutil.copytree(tmp_path / "damaged" / "2", tmp_path / "c" / "2")
            shutil.rmtree(tmp_path / "damaged")
        else:
            assert extra == {"a": 2, "b": "text"}, name
            np.testing.assert_array_equal(restored["w"], state["w"], err_msg=str(name))
        file.write_bytes(whole)
    assert any("ocdbt" in name or "/d/" in name for name in noticed) and "extra/metadata" in noticed, noticed


def test_where_no_checkpoint_can_be_read_nothing_is_moved(tmp_path):
    state, said = {"w": jnp.ones((8, 4))}, []
    with Checkpointer(tmp_path / "c", keep=2) as checkpointer:
        checkpointer.save(1, state, {})
        checkpointer.save(2, state, {})
    for step in "12":
        damage_all(tmp_path / "c" / step)
    with Checkpointer(tmp_path / "c", keep=2) as checkpointer:
        with pytest.raises(Unreadable, match=r"none of the checkpoints of the steps 2, 1 can be read.*c/2"):
            checkpointer.restore_newest(state, said.append)
    assert said == [] and not (tmp_path / "damaged").exists() and Unreadable.status == 1


def test_a_storage_that_fails_is_no_damage(tmp_path, monkeypatch):
    state = {"w": jnp.ones((8, 4))}
    with Checkpointer(tmp_path / "c", keep=2) as checkpointer:
        checkpointer.save(1, state, {})
        checkpointer.wait()

        def stale(*_, **__):
            raise OSError(errno.ESTALE, "Stale file handle")

        monkeypatch.setattr(checkpointer._manager, "restore", stale)
        with pytest.raises(EnvironmentFailure, match=r"could not be read now.*Stale"):
            checkpointer.restore_newest(state, print)
    assert (tmp_path / "c" / "1").is_dir() and not (tmp_path / "damaged").exists()


def test_another_configuration_is_named(tmp_path):
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        checkpointer.save(1, {"w": jnp.zeros((4, 4))}, {})
        checkpointer.wait()
        for other in ({"w": jnp.zeros((4, 5))}, {"w": jnp.zeros((4, 4)), "b": jnp.zeros(4)}, {"v": jnp.zeros((4, 4))}):
            with pytest.raises(Unreadable, match="1: this checkpoint can't be read"):
                checkpointer.restore(1, other)


def test_half_written_saves_are_passed_over(tmp_path):
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        checkpointer.save(1, {"w": jnp.zeros(4)}, {})
    shutil.copytree(tmp_path / "1", tmp_path / "2.orbax-checkpoint-tmp")
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        assert checkpointer.latest() == 1
        checkpointer.save(2, {"w": jnp.ones(4)}, {})
        checkpointer.wait()
        assert checkpointer.latest() == 2


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/checkpoints: cannot keep checkpoints here"):
        Checkpointer(tmp_path / "file" / "checkpoints", keep=1)
