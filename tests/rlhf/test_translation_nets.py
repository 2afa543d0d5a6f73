"""GRU, attention and input feeding against the equations, coded again for one row and one place at a time."""

import jax
import numpy as np
import pytest

from rlhf_jax.translation import nets
from rlhf_jax.translation.corpus import END, PAD, START

KEY = jax.random.key(0)
SIZES = nets.Sizes(source=9, target=7, embed=4, hidden=5)
SOURCE = np.array([[5, 6, 8, END, PAD], [7, END, PAD, PAD, PAD], [4, 4, 5, 6, END]], np.int32)
NOWHERE = np.zeros(3, bool)
TARGET = np.array([[4, 5, END], [6, END, PAD], [5, 5, 4]], np.int32)


def noise(init, *args):
    """Random numbers everywhere: biases of 0 would hide mistakes."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(0, 0.6, x.shape).astype(np.float32), jax.eval_shape(lambda: init(KEY, *args)))


@pytest.fixture(scope="module")
def agent():
    return noise(nets.init_agent, SIZES)


encode = jax.jit(nets.encode)
force = jax.jit(lambda agent, source, target: nets.force(agent, nets.encode(agent, source), target))
logits_of = jax.jit(lambda agent, *pair: nets.logits(agent["decoder"], force(agent, *pair[:2]).feeds, pair[2]))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def linear(p, x):
    return x @ p["kernel"] + p.get("bias", 0)


def gru_step(w, u, h):
    """PyTorch's GRUCell: w, u the input's and the state's parts of (r, z, n)."""
    H = len(h)
    r, z = sigmoid(w[:H] + u[:H]), sigmoid(w[H : 2 * H] + u[H : 2 * H])
    n = np.tanh(w[2 * H :] + r * u[2 * H :])
    return (1 - z) * n + z * h


def translate_row(agent, source, target):
    """Attention vectors and logits at each place of one sentence."""
    enc, dec = agent["encoder"], agent["decoder"]
    h, states = np.zeros(SIZES.hidden), []
    for token in source:
        if token != PAD:
            h = gru_step(linear(enc["gru"]["x"], enc["embed"][token]), linear(enc["gru"]["h"], h), h)
            states.append(h)
    states = np.array(states)
    h, feed = np.tanh(linear(enc["start"], states.mean(0))), np.zeros(SIZES.hidden)
    feeds = []
    for token in [START, *target[:-1]]:
        # Input feeding: W [embedding; previous attention vector]
        kernel = np.concatenate([dec["gru"]["x"]["kernel"], dec["feed"]["kernel"]])
        w = np.concatenate([dec["embed"][token], feed]) @ kernel + dec["gru"]["x"]["bias"]
        h = gru_step(w, linear(dec["gru"]["h"], h), h)
        alpha = softmax(np.array([h @ (s @ enc["attention"]["kernel"]) for s in states]))
        context = (alpha[:, None] * states).sum(0)
        feed = np.tanh(np.concatenate([h, context]) @ np.concatenate([dec["combine"]["kernel"], enc["context"]["kernel"]]))
        feeds.append(feed)
    return np.array(feeds), linear(dec["out"], np.array(feeds))


def test_agent_equals_the_equations(agent):
    forced, logits = force(agent, SOURCE, TARGET), logits_of(agent, SOURCE, TARGET, NOWHERE)
    for row in range(3):
        feeds, expected = translate_row(agent, SOURCE[row], TARGET[row])
        np.testing.assert_allclose(forced.feeds[row], feeds, atol=2e-6)
        np.testing.assert_allclose(logits[row, :, END:], expected[:, END:], atol=2e-6)
        before = np.concatenate([np.zeros((1, SIZES.hidden)), feeds[:-1]])
        read = agent["decoder"]["embed"][[START, *TARGET[row][:-1]]]
        np.testing.assert_allclose(forced.inputs[row], np.concatenate([read, before], 1), atol=2e-6)


def test_pad_and_start_are_never_chosen_nor_an_early_end(agent):
    logits = np.asarray(logits_of(agent, SOURCE, TARGET, np.arange(3) < 2))
    p = np.apply_along_axis(softmax, -1, logits)
    assert (p[..., [PAD, START]] == 0).all()
    assert (p[:, :2, END] == 0).all() and (p[:, 2, END] > 0).all()


def test_padding_changes_nothing(agent):
    """Longer padding of the source and other ids behind the target's end do not matter."""
    changed = np.where(TARGET == PAD, 5, TARGET)
    wide = force(agent, np.pad(SOURCE, ((0, 0), (0, 3))), changed)
    np.testing.assert_allclose(force(agent, SOURCE, TARGET).feeds, wide.feeds, atol=1e-6)


def test_one_hot_source_equals_tokens(agent):
    choices = np.eye(SIZES.source, dtype=np.float32)[SOURCE] * (SOURCE != PAD)[..., None]
    a, b = encode(agent, SOURCE), encode(agent, choices)
    np.testing.assert_array_equal(a.mask, SOURCE != PAD)
    np.testing.assert_array_equal(b.mask, SOURCE != PAD)
    real = np.asarray(a.mask)[..., None]
    np.testing.assert_allclose(a.keys * real, b.keys * real, atol=1e-6)
    np.testing.assert_allclose(a.start, b.start, atol=1e-6)


def test_language_model_reads_only_what_came_before():
    lm = noise(nets.init_lm, 7, 4, 5)
    logits = jax.jit(nets.lm_logits)(lm, TARGET)
    h = np.zeros(5)
    for t, token in enumerate([START, *TARGET[0][:-1]]):
        h = gru_step(linear(lm["gru"]["x"], lm["embed"][token]), linear(lm["gru"]["h"], h), h)
        np.testing.assert_allclose(logits[0, t, END:], linear(lm["out"], h)[END:], atol=2e-6)


def test_dropout_drops_the_rate_and_keeps_the_mean():
    x = np.asarray(jax.jit(lambda x: nets.dropout(KEY, 0.3, x))(np.ones((200, 100), np.float32)))
    assert abs((x == 0).mean() - 0.3) < 0.01
    np.testing.assert_allclose(x.mean(), 1, atol=0.02)
    assert (nets.dropout(None, 0.3, np.ones(3)) == 1).all()


def test_compute_dtype_leaves_logits_in_float32(agent):
    low = nets.cast(agent, "bfloat16")
    feeds, logits = force(low, SOURCE, TARGET).feeds, logits_of(low, SOURCE, TARGET, NOWHERE)
    assert feeds.dtype == "bfloat16" and logits.dtype == "float32"
    np.testing.assert_allclose(np.float32(feeds), force(agent, SOURCE, TARGET).feeds, atol=0.06)
