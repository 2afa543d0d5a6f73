"""Every config, and every tiny one: resumed == straight, sharded == one device."""

import contextlib
from functools import cache

import jax
import pytest

from tests.runs import RESUMED, TINY, assert_close, assert_equal, load, path_of, variants, variants_of_methods
from training import config as configs
from training import loop, population
from training.sharding import make_mesh, replicated
from training.testing import at, train

# The last one has both axes; the others are for when it fails.
MESHES = [pytest.param((8, 1), id="data", marks=pytest.mark.long), pytest.param((1, 8), id="fsdp", marks=pytest.mark.long)]
MESHES += [pytest.param((2, 4), id="mixed")]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Name -> the last state of a whole run on one device, and its workdir."""

    @cache
    def get(name):
        workdir = tmp_path_factory.mktemp(name.replace(":", "-"))
        return train(load(TINY[name], mesh__data=1), workdir), workdir

    return get


@pytest.fixture(scope="module")
def stepped(straight):
    """Name -> (state, metrics) after one step more, on one device."""
    return cache(lambda name: one_more_step(straight(name)[1], load(TINY[name], mesh__data=1)))


@pytest.mark.parametrize("spec", list(variants()))
def test_every_variant_is_a_config(spec):
    config = configs.load(path_of(spec))
    assert config.is_locked and config.method and config.steps > 0


@pytest.mark.parametrize("path", sorted({spec.partition(":")[0] for spec in variants()}))
def test_every_config_says_what_a_batch_and_a_step_are(path):
    assert configs.units(path_of(path))


def test_every_config_has_a_tiny_variant():
    assert {spec.split(":")[0] for spec in variants()} == {spec.split(":")[0] for spec in TINY.values()}


@pytest.mark.parametrize("name", variants_of_methods(TINY, short=RESUMED))
def test_resumed_run_equals_straight_run(straight, tmp_path, name):
    config = load(TINY[name], mesh__data=1)
    train(config, tmp_path, stop_after=4)  # not a multiple of anything
    assert_equal(straight(name)[0], train(config, tmp_path))


@pytest.mark.parametrize("name", variants_of_methods(TINY, short=RESUMED))
@pytest.mark.parametrize("mesh", MESHES)
def test_sharded_step_equals_one_device(straight, stepped, name, mesh):
    """From one state after a few steps, one more step: on one device, and on eight."""
    expected = stepped(name)
    sharded = one_more_step(straight(name)[1], load(TINY[name], mesh__data=mesh[0], mesh__fsdp=mesh[1]))
    assert_close(expected, sharded)
    if mesh[1] > 1:
        specs = [x.sharding.spec for x in jax.tree.leaves(sharded[0].params)]
        assert any("fsdp" in spec for spec in specs)


def one_more_step(workdir, config):
    """Restore a finished run onto the config's mesh and take one step on its next batch -> (state, metrics)."""
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    config = at(config, workdir)
    method = population.make(config, mesh)
    target = loop.abstract_state(config, method, mesh)
    shardings = jax.tree.map(lambda x: x.sharding, target)
    restored = loop.Checkpoints(workdir).restore(target)
    consts = method.consts()
    step = jax.jit(method.step, out_shardings=(shardings, replicated(mesh)))
    with contextlib.closing(method.stream(consts)) as stream, jax.set_mesh(mesh):
        stream.set_state(restored.stream)
        # Finished before the next program begins: see conftest.py.
        return jax.block_until_ready(step(restored.state, stream.next(restored.state), consts))
