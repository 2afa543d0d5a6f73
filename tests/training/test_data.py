"""Streams: the batch is a function of the position; processes share it without overlap."""

import os

import jax
import numpy as np
import pytest

from training import data
from training.data import DatasetStream, generator, uniforms
from training.errors import UserError
from training.example import Line
from training.sharding import batch_spec, make_mesh
from training.testing import make, toy_config


class Indices:
    def __len__(self):
        return 20

    def batch(self, indices, seeds):
        return {"index": indices, "u": uniforms(seeds, 2), "process": np.full(len(indices), os.getpid())}


def indices(batch=8, data=1, seed=1, **options):
    int64 = jax.ShapeDtypeStruct((), np.int64)
    row = {"index": int64, "u": jax.ShapeDtypeStruct((2,), np.float64), "process": int64}
    return DatasetStream(Indices(), batch_spec(row, batch, make_mesh(data)), seed=seed, **options)


def draw(stream, n):
    return [jax.tree.map(np.asarray, stream.next()) for _ in range(n)]


def test_position_is_the_only_state():
    whole = draw(indices(data=4), 6)
    stream = indices(data=4)
    draw(stream, 2)
    saved = stream.get_state()
    draw(stream, 3)  # prefetching and further draws change nothing
    other = indices(data=4)
    other.set_state(saved)
    for a, b in zip(whole[2:], draw(other, 4), strict=True):
        np.testing.assert_array_equal(a["index"], b["index"])
        np.testing.assert_array_equal(a["u"], b["u"])


def test_other_data_are_refused_on_resume():
    stream = indices()
    with pytest.raises(UserError, match="20 examples; the run began with 21"):
        stream.set_state({"position": 3, "examples": 21})


def test_every_example_once_an_epoch_in_a_new_order():
    rows = np.concatenate([b["index"] for b in draw(indices(batch=4, seed=0), 10)])
    assert sorted(rows[:20]) == sorted(rows[20:]) == list(range(20))
    assert list(rows[:20]) != list(rows[20:])


def test_processes_read_disjoint_rows_of_one_global_batch(monkeypatch):
    monkeypatch.setattr(data, "place_rows", lambda rows, mesh, batch: rows)
    whole = indices(seed=3).next()
    parts = []
    for part in (slice(0, 4), slice(4, 8)):
        monkeypatch.setattr(data, "my_rows", lambda batch, mesh, part=part: part)
        parts.append(indices(seed=3).next())
    for name in ("index", "u"):
        np.testing.assert_array_equal(whole[name], np.concatenate([p[name] for p in parts]))


def test_spec_is_what_next_gives():
    spec = toy(make_mesh(8)).spec
    stream = DatasetStream(Line(), spec, seed=0)
    seen = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), stream.next())
    assert seen == jax.tree.map(lambda s: (s.shape, s.dtype, s.sharding), spec)


def toy(mesh, **values):
    return make(toy_config(mesh__data=1, **values), mesh)


def test_empty_data_and_other_data_than_the_spec():
    class Empty(Indices):
        def __len__(self):
            return 0

    spec = toy(make_mesh(1)).spec
    with pytest.raises(UserError, match="empty"):
        DatasetStream(Empty(), spec, seed=0)
    with pytest.raises(UserError, match=r"the data have int64\[\] as index, the config asks for nothing"):
        DatasetStream(Indices(), spec, seed=0)
    with pytest.raises(UserError, match=r"float32\[2\] as x, the config asks for float32\[3\]"):
        DatasetStream(Line(), {**spec, "x": jax.ShapeDtypeStruct((16, 3), np.float32, sharding=spec["x"].sharding)}, seed=0)
    with pytest.raises(UserError, match="not divisible"):
        toy(make_mesh(8), batch=9)


def test_seeds_of_rows_give_uniform_numbers():
    seeds = np.arange(20_000, dtype=np.uint64)
    u = uniforms(seeds, 3)
    assert u.shape == (20_000, 3) and u.min() >= 0 and u.max() < 1
    np.testing.assert_allclose(np.histogram(u, 10, (0, 1))[0] / u.size, 0.1, atol=0.004)
    assert abs(np.corrcoef(u.T) - np.eye(3)).max() < 0.03  # of one seed
    assert abs(np.corrcoef(u[:-1, 0], u[1:, 0])[0, 1]) < 0.03  # of neighbouring seeds
    np.testing.assert_array_equal(uniforms(seeds[5:6], 2), u[5:6, :2])  # a row by itself is the same row
    assert uniforms(np.array([0], np.uint64), 1)[0, 0] == (0xE220A8397B1DCDAF >> 11) / 2**53  # SplitMix64's first of seed 0
    assert generator(seeds[3]).random() == generator(3).random() != generator(4).random()


def test_rows_have_seeds_of_their_own_in_every_epoch():
    rows = np.concatenate([b["u"] for b in draw(indices(batch=4, seed=0), 10)])
    assert len(np.unique(rows[:, 0])) == 40


def test_worker_processes_make_the_same_batches():
    alone, workers = indices(seed=2), indices(seed=2, workers=2)
    try:
        for a, b in zip(draw(alone, 5), draw(workers, 5), strict=True):
            np.testing.assert_array_equal(a["index"], b["index"])
            np.testing.assert_array_equal(a["u"], b["u"])
            assert set(a["process"]) == {os.getpid()} and os.getpid() not in b["process"]
    finally:
        alone.close()
        workers.close()
        workers.close()  # a second time is nothing


def test_a_mistake_in_a_worker_is_the_users_line():
    with pytest.raises(UserError, match="row 3 is broken"):
        stream = DatasetStream(Broken(), toy(make_mesh(1)).spec, seed=0, workers=1)
        try:
            draw(stream, 8)
        finally:
            stream.close()


class Broken(Line):
    def batch(self, indices, seeds):
        if 3 in indices:
            raise UserError("row 3 is broken")
        return super().batch(indices, seeds)
