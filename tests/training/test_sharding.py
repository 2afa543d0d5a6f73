"""Meshes, automatic FSDP and strict rules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

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
