"""Adagrad by hand; the update of some rows against that of the whole table; what L2 does to rows without data."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from kbc_jax.scoring import adagrad

LR = 0.01


def table(rows=8, width=3, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(rows, width)), jnp.float32), jnp.asarray(rng.random((rows, width)), jnp.float32)


def batch():
    """Row 2 comes three times, row 0 twice."""
    rows = jnp.array([2, 5, 2, 0, 7, 2, 0])
    return rows, jnp.asarray(np.random.default_rng(1).normal(size=(7, 3)), jnp.float32)


def dense(rows, grads, size=8):
    return jnp.zeros((size, grads.shape[1])).at[rows].add(grads)


def test_two_steps_by_hand():
    """Gradients 3 and 4: the accumulator goes to 9 and 25, the steps are lr 3 / 3 and lr 4 / 5."""
    params, sums = {"w": jnp.array([1.0, 0.5])}, {"w": jnp.zeros(2)}
    params, sums = adagrad.update(params, sums, {"w": jnp.array([3.0, 0.0])}, 0.1)
    np.testing.assert_allclose(params["w"], [0.9, 0.5], rtol=1e-6)
    params, sums = adagrad.update(params, sums, {"w": jnp.array([4.0, -2.0])}, 0.1)
    np.testing.assert_allclose(params["w"], [0.82, 0.6], rtol=1e-6)
    assert sums["w"].tolist() == [25, 4]


def test_the_first_step_is_the_learning_rate_for_any_gradient_but_zero():
    grads = jnp.array([1e-3, -1e-5, 1e3, -2.0, 0.0])
    params, _ = adagrad.update(jnp.zeros(5), jnp.zeros(5), grads, LR)
    np.testing.assert_allclose(params, [-LR, LR, -LR, LR, 0], rtol=0.011)
    assert abs(float(params[1])) < 0.9902 * LR  # epsilon, 1e-7, stands outside the root
    params, _ = adagrad.update(jnp.zeros(1), jnp.zeros(1), jnp.array([1e-7]), LR)
    np.testing.assert_allclose(params, [-LR / 2], rtol=1e-3)


def test_rows_are_updated_as_in_the_whole_table():
    (values, sums), (rows, grads) = table(), batch()
    sparse = adagrad.update_rows(values, sums, rows, grads, LR, 0.0)
    full = adagrad.update_table(values, sums, dense(rows, grads), LR, 0.0)
    plain = adagrad.update(values, sums, dense(rows, grads), LR)
    for a, b, c, old in zip(sparse, full, plain, (values, sums), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
        np.testing.assert_array_equal(b, c)
        untouched = [1, 3, 4, 6]
        np.testing.assert_array_equal(np.asarray(a)[untouched], np.asarray(old)[untouched])
        assert (np.asarray(a)[[0, 2, 5, 7]] != np.asarray(old)[[0, 2, 5, 7]]).all()


def test_lazy_l2_pulls_once_at_each_row_of_the_batch():
    values, _ = table()
    rows, l2 = jnp.array([2, 2, 5, 2]), 0.1
    new, squares = adagrad.update_rows(values, jnp.zeros_like(values), rows, jnp.zeros((4, 3)), LR, l2)
    expected = np.zeros((8, 3))
    expected[[2, 5]] = 2 * l2 * np.asarray(values)[[2, 5]]  # the gradient of l2 |row|^2
    np.testing.assert_allclose(squares, expected**2, rtol=1e-5)
    np.testing.assert_allclose(new, values - LR * np.sign(expected), rtol=1e-4)


def test_l2_adds_to_the_gradient():
    """Rows of a batch move as in the dense update, L2 added to their gradients; the other rows move only there."""
    (values, sums), (rows, grads) = table(), batch()
    lazy = adagrad.update_rows(values, sums, rows, grads, LR, 0.3)
    whole = adagrad.update_table(values, sums, dense(rows, grads), LR, 0.3)
    by_hand = adagrad.update(values, sums, dense(rows, grads) + 0.6 * values, LR)
    for a, b, c in zip(lazy, whole, by_hand, strict=True):
        np.testing.assert_allclose(b, c, rtol=1e-6)
        np.testing.assert_allclose(np.asarray(a)[[0, 2, 5, 7]], np.asarray(b)[[0, 2, 5, 7]], rtol=1e-5)
        assert (np.asarray(a)[[1, 3, 4, 6]] != np.asarray(b)[[1, 3, 4, 6]]).all()


def test_dense_l2_erases_a_word_without_data_and_lazy_l2_leaves_it():
    values = jnp.full((4, 2), 0.3)
    rows, grads = jnp.array([1, 2, 1]), jnp.ones((3, 2))

    @functools.partial(jax.jit, static_argnums=0)
    def after(update, steps):
        return jax.lax.fori_loop(0, steps, lambda _, x: update(*x), (values, jnp.zeros_like(values)))[0]

    def dense_step(values, sums):
        return adagrad.update_table(values, sums, dense(rows, grads, 4), LR, 1e-6)

    def lazy_step(values, sums):
        return adagrad.update_rows(values, sums, rows, grads, LR, 1e-6)

    assert 0.05 < abs(after(dense_step, 100)[3]).max() < 0.299
    assert abs(after(dense_step, 1000)[jnp.array([0, 3])]).max() < 5e-3
    assert (after(lazy_step, 1000)[jnp.array([0, 3])] == values[0]).all()
