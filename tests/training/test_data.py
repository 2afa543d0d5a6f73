"""Streams: the batch is a function of the position; processes share it without overlap."""

import jax
import numpy as np
import pytest

from training import data
from training.data import DatasetStream
from training.errors import UserError
from training.sharding import make_mesh
from training.testing import Line


class Indices:
    randoms = 2

    def __len__(self):
        return 20

    def batch(self, indices, uniforms):
        return {"index": indices, "u": uniforms}


def draw(stream, n):
    return [jax.tree.map(np.asarray, stream.next()) for _ in range(n)]


def test_position_is_the_only_state():
    make = lambda: DatasetStream(Indices(), batch=8, seed=1, mesh=make_mesh(4))  # noqa: E731
    whole = draw(make(), 6)
    stream = make()
    draw(stream, 2)
    saved = stream.get_state()
    draw(stream, 3)  # prefetching and further draws change nothing
    other = make()
    other.set_state(saved)
    for a, b in zip(whole[2:], draw(other, 4), strict=True):
        np.testing.assert_array_equal(a["index"], b["index"])
        np.testing.assert_array_equal(a["u"], b["u"])


def test_other_data_are_refused_on_resume():
    stream = DatasetStream(Indices(), batch=8, seed=1, mesh=make_mesh(1))
    with pytest.raises(UserError, match="20 examples; the run began with 21"):
        stream.set_state({"position": 3, "examples": 21})


def test_every_example_once_an_epoch_in_a_new_order():
    rows = np.concatenate([b["index"] for b in draw(DatasetStream(Indices(), batch=4, seed=0, mesh=make_mesh(1)), 10)])
    assert sorted(rows[:20]) == sorted(rows[20:]) == list(range(20))
    assert list(rows[:20]) != list(rows[20:])


def test_processes_read_disjoint_rows_of_one_global_batch(monkeypatch):
    monkeypatch.setattr(data, "place_rows", lambda rows, mesh, batch: rows)
    whole = DatasetStream(Indices(), batch=8, seed=3, mesh=make_mesh(1)).next()
    parts = []
    for part in (slice(0, 4), slice(4, 8)):
        monkeypatch.setattr(data, "my_rows", lambda batch, mesh, part=part: part)
        parts.append(DatasetStream(Indices(), batch=8, seed=3, mesh=make_mesh(1)).next())
    for name in ("index", "u"):
        np.testing.assert_array_equal(whole[name], np.concatenate([p[name] for p in parts]))


def test_spec_is_what_next_gives():
    stream = DatasetStream(Line(), batch=16, seed=0, mesh=make_mesh(8))
    batch = stream.next()
    assert jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), batch) == jax.tree.map(
        lambda s: (s.shape, s.dtype, s.sharding), stream.spec
    )


def test_empty_data_and_indivisible_batch():
    class Empty(Indices):
        def __len__(self):
            return 0

    with pytest.raises(UserError, match="empty"):
        DatasetStream(Empty(), batch=8, seed=0, mesh=make_mesh(1))
    with pytest.raises(UserError, match="not divisible"):
        DatasetStream(Line(), batch=9, seed=0, mesh=make_mesh(8))
