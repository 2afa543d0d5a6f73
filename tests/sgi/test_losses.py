"""The losses against hand-made numbers, and the gradients where JAX would give NaN."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgi.nets import losses

SUPPORT = np.linspace(-10, 10, 51, dtype=np.float32)


def run(function, *args):
    """One program instead of one for each operation: compiling is what takes time here."""
    return jax.tree.map(np.asarray, jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})(*args))


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def distributions(seed, *shape):
    weights = np.exp(2 * draw(seed, *shape))
    return weights / weights.sum(-1, keepdims=True)


def test_normalise():
    x = np.array([[3.0, 4.0], [3e-4, 4e-4], [0.0, 0.0]])
    value, gradient = run(lambda x: (losses.normalise(x), jax.grad(lambda x: losses.normalise(x).sum())(x)), x)
    np.testing.assert_allclose(value, [[0.6, 0.8], [0.3, 0.4], [0, 0]], rtol=1e-6)
    np.testing.assert_allclose(gradient[2], 1e3, rtol=1e-6)  # finite at zero


def test_spr_loss():
    y, t = draw(0, 6, 4, 16), draw(1, 6, 4, 16)
    gradients = jax.grad(lambda y, t: losses.spr_loss(y, t).sum(), (0, 1))
    loss, same, (to_y, to_t) = run(lambda y, t: (losses.spr_loss(y, t), losses.spr_loss(y, 3 * y), gradients(y, t)), y, t)
    cosine = (y * t).sum(-1) / np.linalg.norm(y, axis=-1) / np.linalg.norm(t, axis=-1)
    np.testing.assert_allclose(loss, 2 - 2 * cosine, rtol=1e-4)
    np.testing.assert_allclose(same, 0, atol=1e-6)
    assert np.abs(to_y).max() > 0.01 and not to_t.any()


def test_spr_weight():
    """The paper's lambda = 2 on a sum over K = 5 of -cos is weight 5 on the mean over K: the gradients are equal."""
    y, t = draw(2, 5, 16), draw(3, 5, 16)

    def paper(y):
        return -2 * ((y * t).sum(-1) / jnp.sqrt((y**2).sum(-1) * (t**2).sum(-1))).sum()

    ours, theirs = run(lambda y: (jax.grad(lambda y: 5 * losses.spr_loss(y, t).mean())(y), jax.grad(paper)(y)), y)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_inverse_loss():
    logits, action = draw(4, 3, 2, 5), np.array([[0, 4], [2, 2], [1, 3]])
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = -np.log(np.take_along_axis(p, action[..., None], -1)[..., 0])
    np.testing.assert_allclose(run(losses.inverse_loss, logits, action), expected, rtol=1e-5)


@pytest.mark.parametrize(("offset", "learns"), [(0, True), (1, False)])
def test_inverse_loss_needs_aligned_actions(offset, learns):
    """A walker on a ring: the step between two places is learnt to perfection, the step after them not at all."""
    steps = np.random.default_rng(0).integers(0, 3, 513)
    place = np.concatenate([[0], np.cumsum(steps - 1)])[:513] % 12
    pairs = draw(5, 12, 12, 200)[place[:512], place[1:513]]  # random features of each pair of places
    action = steps[offset : 512 + offset]

    def accuracy(w):
        def descend(w, _):
            return w - jax.grad(lambda w: losses.inverse_loss(pairs[:256] @ w, action[:256]).mean())(w), None

        w, _ = jax.lax.scan(descend, w, length=40)
        return ((pairs[256:] @ w).argmax(-1) == action[256:]).mean()

    held_out = run(accuracy, np.zeros((200, 3), np.float32))
    assert held_out == 1 if learns else held_out < 0.5


def test_goal_distance():
    z, g = draw(6, 3, 8), draw(7, 3, 8)

    def distances(z, g):
        return losses.goal_distance(z, g), losses.goal_distance(z, g, 2.0, "squared"), losses.goal_distance(z, 2 * z)

    exponential, squared, same = run(distances, z, g)
    unit = [v / np.linalg.norm(v, axis=-1, keepdims=True) for v in (z, g)]
    expected = ((unit[0] - unit[1]) ** 2).sum(-1)
    np.testing.assert_allclose(exponential, 1 - np.exp(-5 * expected), rtol=1e-5)
    np.testing.assert_allclose(squared, 2 * expected, rtol=1e-5)
    np.testing.assert_allclose(same, 0, atol=1e-6)


def test_goal_reward():
    """Positive towards the goal, telescoping along a trajectory, zero behind the mask, times the discount only as a quirk."""
    start, goal = draw(8, 16), draw(9, 16)
    path = (start + np.linspace(0, 1, 6)[:, None] * (goal - start)).astype(np.float32)
    mask = np.array([1.0, 0, 1, 0, 1])

    def rewards(path):
        reward = partial(losses.goal_reward, goal=goal, discount=0.99)
        now, after = path[:-1], path[1:]
        there, back = reward(now, after, mask=jnp.ones(5)), reward(after, now, mask=jnp.ones(5))
        masked, quirk = reward(now, after, mask=mask), reward(now, after, mask=mask, quirks=True)
        return there, back, masked, quirk, losses.goal_distance(path, goal)

    there, back, masked, quirk, distance = run(rewards, path)
    assert (there > 0).all()
    np.testing.assert_allclose(there.sum(), 10 * (distance[0] - distance[-1]), rtol=1e-5)
    np.testing.assert_allclose(back, -there, rtol=1e-5)
    np.testing.assert_allclose(masked, there * mask, rtol=1e-5)
    np.testing.assert_allclose(quirk, 0.99 * there * mask, rtol=1e-5)


def correlation(a, b):
    a, b = (v - v.mean(1, keepdims=True) for v in (a, b))
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def test_goal_noise():
    """Min-max scaling keeps the correlation with the goal: (1-w) / sqrt((1-w)^2 + w^2), w ~ U(0, 0.5)."""
    goals = draw(10, 400, 1000) * 10

    def perturb(key, goals):
        return [losses.perturb_goals(key, goals, permute_prob=0.0, quirks=quirks) for quirks in (False, True)]

    noisy, quirk = run(perturb, jax.random.key(0), goals)
    assert not noisy.min(1).any() and (noisy.max(1) > 0.999).all()
    tangent = np.sqrt(1 / correlation(noisy, goals) ** 2 - 1)
    weight = tangent / (1 + tangent)
    assert weight.max() < 0.52 and weight.min() < 0.05
    np.testing.assert_allclose([weight.mean(), weight.std()], [0.25, 0.5 / 12**0.5], rtol=0.1)
    assert correlation(quirk, goals).min() > 0.9999  # unit noise on vectors of norm 300 does nothing


def test_goal_permutation():
    goals = draw(11, 500, 32)

    def mix(key, goals):
        return losses.perturb_goals(key, goals, noise_max=0.0), losses.minmax(goals), losses.perturb_goals(key, 0 * goals)

    mixed, plain, blank = run(mix, jax.random.key(1), goals)
    source = np.abs(mixed[:, None] - plain).max(-1).argmin(1)
    np.testing.assert_allclose(mixed, plain[source], atol=1e-4)
    moved = source != np.arange(500)
    np.testing.assert_allclose(moved.mean(), 0.2, atol=0.05)
    assert len(set(source[moved])) > 0.8 * moved.sum()  # from all over the batch
    assert np.isfinite(blank).all()


def brute_force_projection(reward, discount, probs):
    out = np.zeros_like(probs, np.float64)
    for b, j in np.ndindex(*probs.shape):
        position = (np.clip(reward[b] + discount[b] * SUPPORT[j], -10, 10) + 10) / 0.4
        low = min(int(position), 49)
        out[b, low] += probs[b, j] * (low + 1 - position)
        out[b, low + 1] += probs[b, j] * (position - low)
    return out


def test_c51_projection():
    """Ordinary, n-step, terminal (discount 0), nothing to do, and returns off both ends of the support."""
    reward = np.array([0.3, -1.7, 2.5, 4.0, 0.0, 25.0, -25.0, 9.9], np.float32)
    discount = np.array([0.99, 0.99**10, 0.0, 0.0, 1.0, 0.99, 0.0, 0.99], np.float32)
    probs = distributions(12, 8, 51)

    def project(*args):
        projected = losses.c51_project(*args, SUPPORT)
        return projected, losses.expected_values(jnp.log(projected), SUPPORT)

    projected, means = run(project, reward, discount, probs)
    np.testing.assert_allclose(projected, brute_force_projection(reward, discount, probs), atol=1e-5)
    np.testing.assert_allclose(projected.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(projected[4], probs[4], atol=1e-5)
    np.testing.assert_allclose(means[:3], (reward + discount * (probs @ SUPPORT))[:3], rtol=1e-2)


def test_double_dqn_target():
    """The online net chooses, the target net evaluates."""
    online, target = np.full((2, 2, 3, 51), 1e-12, np.float32)
    online[0, 1, 50] = online[1, 2, 50] = 1  # the online net likes action 1, then action 2
    target[..., 0] = 1
    target[0, 1], target[1, 2] = np.eye(51)[30], np.eye(51)[20]  # values 2 and -2 there, -10 elsewhere
    reward, discount = np.array([1.0, 1.0]), np.array([0.5, 0.0])

    def loss_and_gradients(online, target):
        def bootstrap(online, target):
            return losses.double_dqn_target(online, target, reward, discount, SUPPORT)

        gradients = jax.grad(lambda *x: bootstrap(*x)[:, 30].sum(), (0, 1))
        return bootstrap(online, target), gradients(online, target)

    out, gradients = run(loss_and_gradients, np.log(online), np.log(target + 1e-12))
    np.testing.assert_allclose(out @ SUPPORT, [1 + 0.5 * 2, 1], atol=1e-4)
    assert not gradients[0].any() and not gradients[1].any()


def test_cross_entropy_of_the_action_taken():
    log_probs, target, action = np.log(distributions(13, 4, 3, 51)), distributions(14, 4, 51), np.array([2, 0, 1, 2])
    loss = run(lambda *x: losses.cross_entropy(x[1], losses.at_action(x[0], x[2])), log_probs, target, action)
    np.testing.assert_allclose(loss, [-(target[b] * log_probs[b, action[b]]).sum() for b in range(4)], rtol=1e-5)


def test_priority():
    target = np.zeros((3, 51), np.float32)
    target[:, 7] = 1
    log_probs = np.log(np.full((3, 51), 1 / 51, np.float32))
    log_probs[1] = np.log(np.maximum(target[1], 1e-6))  # equal after the clamp: KL = 0
    log_probs[2] = -1e7  # hopelessly wrong
    expected = np.log(51) + 50 * 1e-6 * (np.log(1e-6) + np.log(51))
    np.testing.assert_allclose(run(losses.kl_priority, target, log_probs), [expected, 1e-6, 1e6], rtol=1e-5)


@pytest.mark.parametrize(("beta", "expected"), [(0.5, [1, 0.1, 0.05]), (0.0, [1, 1, 1])])
def test_importance_weights(beta, expected):
    np.testing.assert_allclose(run(losses.importance_weights, np.array([0.01, 1.0, 4.0]), beta), expected, rtol=1e-3)
