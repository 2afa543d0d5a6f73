"""Meshes, automatic FSDP and strict rules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from training import sharding
from training.errors import UserError
from training.sharding import check_batch, fsdp_spec, make_mesh, my_rows, place_rows, state_shardings, table


def test_mesh_sizes():
    assert dict(make_mesh(-1, 2, 1).shape) == {"data": 4, "fsdp": 2, "tensor": 1}
    assert make_mesh(1).size == 1
    for sizes, message in {
        (-1, -1, 1): "at most once",
        (0, 1, 1): "positive",
        (-1, 3, 1): "divide",
        (16, 1, 1): "needs 16 devices",
    }.items():
        with pytest.raises(UserError, match=message):
            make_mesh(*sizes)


def test_batch_must_divide():
    check_batch(16, make_mesh(4, 2))
    with pytest.raises(UserError, match=r"12 rows is not divisible .* = 8"):
        check_batch(12, make_mesh(4, 2))


@pytest.mark.parametrize(
    ("shape", "spec"),
    [((6, 8, 4), P(None, "fsdp")), ((8, 8), P("fsdp")), ((3, 5), P()), ((), P()), ((2, 3), P())],
)
def test_fsdp_by_shape(shape, spec):
    assert fsdp_spec(shape, 2, min_size=7) == spec


def test_rules_are_strict():
    mesh = make_mesh(2, 2, 2)
    shapes = {"attn": {"q": jax.ShapeDtypeStruct((8, 16), jnp.float32)}, "bias": jax.ShapeDtypeStruct((6,), jnp.float32)}
    found = state_shardings(shapes, mesh, ((r"attn/q$", P("fsdp", "tensor")),))
    assert found["attn"]["q"].spec == P("fsdp", "tensor") and found["bias"].spec == P()
    assert "attn" not in table(shapes, found) and "smaller" in table(shapes, found)
    for rules, message in {
        ((r"attn/k$", P("fsdp")),): "match no array",
        ((r"bias", P("fsdp", "tensor")),): "more axes",
        ((r"bias", P(("fsdp", "tensor"))),): "does not divide",
    }.items():
        with pytest.raises(UserError, match=message):
            state_shardings(shapes, mesh, rules)


def test_rows_are_split_over_data_and_fsdp():
    mesh = make_mesh(2, 2, 2)
    assert my_rows(8, mesh) == slice(0, 8)
    x = place_rows(np.arange(8), mesh, 8)
    assert [int(s.data[0]) for s in x.addressable_shards if s.replica_id == 0] == [0, 2, 4, 6]


def test_a_smaller_mesh_takes_equally_many_devices_of_each_process():
    class Device:
        def __init__(self, process, number):
            self.process_index, self.number = process, number

    devices = [Device(process, number) for process in range(2) for number in range(3)]
    chosen = sharding._equal_share(devices, 4)
    assert [(d.process_index, d.number) for d in chosen] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    with pytest.raises(UserError, match="3 devices cannot take equally many of the 2 processes"):
        sharding._equal_share(devices, 3)


def test_arrays_move_to_another_mesh_with_their_spec():
    here, there = (make_mesh(2, 2, devices=jax.devices()[half]) for half in (slice(0, 4), slice(4, 8)))
    tree = {"w": jax.device_put(np.arange(16.0).reshape(4, 4), NamedSharding(here, P("fsdp")))}
    moved = sharding.move(tree, there)
    assert moved["w"].sharding == NamedSharding(there, P("fsdp"))
    np.testing.assert_array_equal(moved["w"], tree["w"])
    assert sharding.move(tree, here)["w"] is tree["w"]


def test_specs_of_batches_and_of_what_is_replicated():
    mesh = make_mesh(2, 2, 2)
    row = {"x": jax.ShapeDtypeStruct((3,), np.int32)}
    spec = sharding.batch_spec(row, 8, mesh)
    assert (spec["x"].shape, spec["x"].sharding.spec) == ((8, 3), P(("data", "fsdp")))
    assert sharding.replicated_spec(spec, mesh)["x"].sharding.spec == P()
    with pytest.raises(UserError, match="not divisible"):
        sharding.batch_spec(row, 6, mesh)
