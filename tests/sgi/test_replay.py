"""Replay on the device, against a plain Python list."""

import jax
import jax.numpy as jnp
import numpy as np

from sgi.agent import replay

GAMMA = 0.9


def fill(count=300, capacity=256, seed=0):
    """A buffer of tiny frames whose pixel is the step number, and the list of what was put in."""
    rng = np.random.default_rng(seed)
    buffer, items = replay.create(capacity, (2, 2), jnp.uint8), []
    start = True
    add = jax.jit(replay.add)
    for t in range(count):
        done = bool(rng.random() < 0.1)
        item = (np.full((1, 2, 2), t % 251 + 1, np.uint8), t % 5, float(rng.integers(-1, 2)), done, start)
        items.append(item)
        arrays = (item[0], *(np.array([x]) for x in item[1:]))
        buffer = add(buffer, replay.Transition(*map(jnp.asarray, arrays)))
        start = done
    return buffer, items


def test_chunks_and_single_steps_write_the_same():
    _, items = fill(40)
    rows = [np.concatenate([np.atleast_1d(i[f]) for i in items]) for f in range(5)]
    chunk = replay.add(replay.create(256, (2, 2), jnp.uint8), replay.Transition(*map(jnp.asarray, rows)))
    jax.tree.map(np.testing.assert_array_equal, chunk, fill(40)[0])


def test_drawable_keeps_away_from_the_write_head():
    buffer, _ = fill(300)  # 256 slots: items 44..299 are there, item 299 in slot 43
    slots = np.flatnonzero(replay.drawable(buffer, ahead=10, behind=3))
    steps = {s if s > 43 else s + 256 for s in slots}
    assert steps == set(range(44 + 3, 300 - 10))
    few = np.flatnonzero(replay.drawable(fill(20)[0], ahead=10, behind=3))
    assert list(few) == list(range(10))


def test_stacks_never_show_an_earlier_episode():
    for count in (200, 300):
        buffer, items = fill(count)
        slots = np.flatnonzero(replay.drawable(buffer, ahead=5, behind=3))
        images = np.asarray(replay.stacked_observations(buffer, jnp.asarray(slots), 3))
        for slot, image in zip(slots, images, strict=True):
            first = slot if count <= 256 or slot >= count - 256 else slot + 256
            for k in range(3):
                for j in range(4):
                    t = first + k - j
                    visible = t >= 0 and not any(items[s][4] for s in range(t + 1, first + k + 1))
                    expected = items[t][0][0, 0, 0] if visible else 0
                    assert image[k, 0, 0, 3 - j] == expected, (slot, k, j)


def test_n_step_returns():
    buffer, items = fill(200)
    slots = np.flatnonzero(replay.drawable(buffer, ahead=6, behind=3))
    returns, discounts = replay.n_step(buffer, jnp.asarray(slots), 6, GAMMA, 6)
    for slot, value, discount in zip(slots, returns, discounts, strict=True):
        total, factor = 0.0, 1.0
        for i in range(6):
            total += factor * items[slot + i][2]
            factor *= GAMMA
            if items[slot + i][3]:
                factor = 0.0
                break
        assert abs(total - value) < 1e-5 and abs(factor - discount) < 1e-5


def test_unbroken_is_the_mask_of_section_1_9():
    buffer, items = fill(100)
    mask = np.asarray(replay.unbroken(buffer, jnp.arange(50), 4))
    for t in range(50):
        assert list(mask[t]) == [float(not any(items[t + i][3] for i in range(k))) for k in range(5)]


def test_frequencies_follow_priorities():
    buffer, _ = fill(300)
    priority = jnp.asarray(np.random.default_rng(1).random(256) ** 3, jnp.float32).at[100:110].set(0)
    buffer = replay.reprioritise(buffer, jnp.arange(256), priority)
    draws, p = jax.jit(lambda k: replay.sample(buffer, k, 200_000, ahead=10, behind=3))(jax.random.key(0))
    allowed = np.asarray(replay.drawable(buffer, ahead=10, behind=3))
    expected = np.where(allowed, priority, 0)
    expected = expected / expected.sum()
    value = np.bincount(draws, minlength=256) / len(draws)
    assert value[expected == 0].sum() == 0
    np.testing.assert_allclose(value, expected, atol=4 * np.sqrt(expected.max() / len(draws)))
    np.testing.assert_array_equal(p, priority[draws])


def test_priorities_are_per_sample():
    buffer, _ = fill(100)
    new = replay.reprioritise(buffer, jnp.array([3, 5]), jnp.array([0.5, 2.0]))
    assert float(new.priority[3]) == 0.5 and float(new.priority[5]) == 2.0 and float(new.priority[4]) == 1.0
