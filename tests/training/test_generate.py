"""GeneratorStream: what a batch holds, whose weights made it, where its rows lie, resuming."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from training.data import DatasetStream
from training.errors import UserError
from training.generate import GeneratorStream, local_rows
from training.method import TrainState
from training.rng import key_for
from training.sharding import make_mesh


class Numbers:
    randoms = 0

    def __len__(self):
        return 32

    def batch(self, indices, uniforms):
        return {"x": indices.astype(np.float32), "index": indices.astype(np.int32)}


def stream(mesh, score=None, lag=0):
    def generate(state, batch, consts):
        noise = jax.random.normal(key_for(state.seed, state.step, "generate"), batch["x"].shape)
        return {"y": batch["x"] * state.params["w"] + consts, "noise": noise}

    def double(batch, made):
        np.testing.assert_array_equal(batch["x"], batch["index"])
        return {"score": (2 * made["y"]).astype(np.float32)}

    shape = jax.ShapeDtypeStruct((), np.float32)
    return GeneratorStream(
        DatasetStream(Numbers(), batch=8, seed=0, mesh=mesh),
        generate,
        score or double,
        makes={name: shape for name in ("y", "noise", "score")},
        view=lambda s: TrainState(s.step, s.seed, {"w": s.params["w"]}, None, None),
        consts=lambda: jnp.float32(1),
        mesh=mesh,
        lag=lag,
    )


def state(step, w):
    params = {"w": jnp.float32(w), "unread": jnp.zeros(3)}
    return TrainState(jnp.int32(step), jnp.uint32(0), params, None, None)


@pytest.mark.parametrize("sizes", [(1, 1), (2, 4)], ids=["one device", "eight"])
def test_a_batch_is_made_by_the_weights_it_is_handed(sizes):
    source = stream(make_mesh(*sizes))
    for step, w in ((0, 3.0), (1, -2.0)):
        batch = source.next(state(step, w))
        assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {k: (v.shape, v.dtype) for k, v in source.spec.items()}
        assert all(batch[k].sharding.is_equivalent_to(source.spec[k].sharding, batch[k].ndim) for k in batch)
        np.testing.assert_allclose(batch["y"], np.asarray(batch["x"]) * w + 1)
        np.testing.assert_allclose(batch["score"], 2 * np.asarray(batch["y"]))  # each row's own
        assert np.asarray(batch["version"]).tolist() == [step] * 8


def test_the_stream_reads_only_what_generation_needs():
    view = stream(make_mesh(1)).reads(state(0, 1.0))
    assert set(view.params) == {"w"}
    assert view.opt_state is None and view.extra is None


def test_resuming_draws_the_same_again():
    straight = stream(make_mesh(1))
    batches = [straight.next(state(i, 1.0)) for i in range(4)]
    first = stream(make_mesh(1))
    for i in range(2):
        first.next(state(i, 1.0))
    resumed = stream(make_mesh(1))
    resumed.set_state(first.get_state())
    for i in (2, 3):
        jax.tree.map(np.testing.assert_array_equal, resumed.next(state(i, 1.0)), batches[i])
    assert not np.array_equal(batches[2]["noise"], batches[3]["noise"])


def test_local_rows_are_in_order_and_each_once():
    mesh = make_mesh(2, 2, 2)
    x = np.arange(24).reshape(8, 3)
    for spec in (P(("data", "fsdp")), P("fsdp"), P()):
        np.testing.assert_array_equal(local_rows(jax.device_put(x, NamedSharding(mesh, spec))), x)


def test_lag_is_refused_until_it_is_built():
    with pytest.raises(UserError, match="lag is 1"):
        stream(make_mesh(1), lag=1)
