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
from training.sharding import batch_spec, make_mesh, replicated


class Numbers:
    def __len__(self):
        return 32

    def batch(self, indices, seeds):
        return {"x": indices.astype(np.float32), "index": indices.astype(np.int32)}


PROMPTS = {"x": np.float32, "index": np.int32}
MADE = {"y": np.float32, "noise": np.float32, "score": np.float32, "version": np.int32}


def spec(names, mesh):
    return batch_spec({name: jax.ShapeDtypeStruct((), dtype) for name, dtype in names.items()}, 8, mesh)


def stream(mesh, score=None, lag=0, there=None):
    """Generation on the mesh `there`, or on the learner's."""

    def generate(state, batch, consts):
        noise = jax.random.normal(key_for(state.seed, state.step, "generate"), batch["x"].shape)
        return {"y": batch["x"] * state.params["w"] + consts, "noise": noise}

    def double(batch, made):
        np.testing.assert_array_equal(batch["x"], batch["index"])
        return {"score": (2 * made["y"]).astype(np.float32)}

    return GeneratorStream(
        DatasetStream(Numbers(), spec(PROMPTS, there or mesh), seed=0),
        generate,
        score or double,
        spec=spec({**PROMPTS, **MADE}, mesh),
        view=lambda s: TrainState(s.step, s.seed, {"w": s.params["w"]}, None, None),
        consts=jax.device_put(jnp.float32(1), replicated(mesh)),
        lag=lag,
    )


def state(step, w, mesh=None):
    params = {"w": jnp.float32(w), "unread": jnp.zeros(3)}
    made = TrainState(jnp.int32(step), jnp.uint32(0), params, None, None)
    return jax.device_put(made, replicated(mesh or make_mesh(1)))


HALVES = {  # (devices of the learner, of generation)
    "one device": (slice(0, 1), slice(0, 1)),
    "eight": (slice(0, 8), slice(0, 8)),
    "four each": (slice(0, 4), slice(4, 8)),
    "two generate for six": (slice(0, 4), slice(6, 8)),
}


@pytest.mark.parametrize("halves", HALVES.values(), ids=HALVES)
def test_a_batch_is_made_by_the_weights_it_is_handed(halves):
    here, there = (make_mesh(fsdp=1, devices=jax.devices()[half]) for half in halves)
    source, wanted = stream(here, there=there), spec({**PROMPTS, **MADE}, here)
    for step, w in ((0, 3.0), (1, -2.0)):
        batch = source.next(state(step, w, here))
        assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {k: (v.shape, v.dtype) for k, v in wanted.items()}
        assert all(batch[k].sharding.is_equivalent_to(wanted[k].sharding, batch[k].ndim) for k in batch)
        np.testing.assert_allclose(batch["y"], np.asarray(batch["x"]) * w + 1)
        np.testing.assert_allclose(batch["score"], 2 * np.asarray(batch["y"]))  # each row's own
        assert np.asarray(batch["version"]).tolist() == [step] * 8
    assert set(source.report()) == {"time/generation", "time/score"} and source.report() == {}


def test_meshes_of_two_numbers_of_devices_generate_the_same():
    here = make_mesh(fsdp=1, devices=jax.devices()[:4])
    split = stream(here, there=make_mesh(fsdp=1, devices=jax.devices()[4:]))
    for step in range(3):
        batches = [source.next(state(step, 2.0, mesh)) for source, mesh in ((split, here), (stream_at(step), make_mesh(1)))]
        jax.tree.map(np.testing.assert_array_equal, *batches)


def stream_at(position):
    source = stream(make_mesh(1))
    source.set_state({"position": position, "examples": 32})
    return source


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
