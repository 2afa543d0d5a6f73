"""Sampling, greedy and beam search against enumeration; gradients of straight-through choices against the formula."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.translation import losses, nets, search
from rlhf_jax.translation.corpus import END, PAD, START

SIZES = nets.Sizes(source=8, target=6, embed=3, hidden=4)  # 3 words: UNKNOWN, 4, 5
SOURCE = np.array([[5, 6, 7, END], [7, END, PAD, PAD], [4, 5, END, PAD], [6, 6, 6, END]])
WORDS = (3, 4, 5)


@pytest.fixture(scope="module")
def agent():
    rng = np.random.default_rng(3)
    shapes = jax.eval_shape(lambda: nets.init_agent(jax.random.key(0), SIZES))
    agent = jax.tree.map(lambda x: rng.normal(0, 1, x.shape).astype(np.float32), shapes)
    agent["decoder"]["out"]["kernel"] *= 2  # distinct choices
    return agent


@pytest.fixture(scope="module")
def memory(agent):
    return jax.jit(nets.encode)(agent, SOURCE)


def sentences(length, shortest=1):
    """Every sentence of at most `length` tokens, END included; one that fills `length` may lack END."""
    for n in range(length + 1):
        for words in itertools.product(WORDS, repeat=n):
            if n == length:
                yield words
            elif n + 1 >= shortest:
                yield (*words, END)


@functools.partial(jax.jit, static_argnames="shortest")
def score(agent, memory, tokens, shortest):
    """Logits [B, T, V] and log p [B] of sentences."""
    feeds = nets.force(agent, memory, tokens).feeds
    logits = nets.logits(agent["decoder"], feeds, jnp.arange(tokens.shape[1]) < shortest - 1)
    return logits, jnp.where(tokens != PAD, losses.log_prob(logits, tokens), 0).sum(1)


def log_probs(agent, memory, rows, length, shortest=1):
    """Log p of each row of tokens, for the first source of `memory`; computed 128 rows at a time."""
    tokens = np.full((-(-len(rows) // 128) * 128, length), PAD, np.int32)
    for line, row in zip(tokens, rows, strict=False):
        line[: len(row)] = row
    wide = jax.tree.map(lambda x: np.repeat(np.asarray(x[:1]), 128, 0), memory)
    parts = [score(agent, wide, part, shortest)[1] for part in tokens.reshape(-1, 128, length)]
    return np.concatenate(parts)[: len(rows)]


def one(memory, i):
    return jax.tree.map(lambda x: np.asarray(x)[i : i + 1], memory)


def strip(row):
    return tuple(int(t) for t in row if t != PAD)


@pytest.mark.parametrize(("shortest", "exponent"), [(1, 0.6), (3, 1.5)])
def test_wide_beam_finds_the_best_of_all_sentences(agent, memory, shortest, exponent):
    rows = list(sentences(4, shortest))
    best = jax.jit(functools.partial(search.beam, beams=27, length=4, exponent=exponent, shortest=shortest))(agent, memory)
    for i, row in enumerate(best):
        scores = log_probs(agent, one(memory, i), rows, 4, shortest) / np.array([len(row) for row in rows]) ** exponent
        assert strip(row) == rows[scores.argmax()]


def narrow_beam(score, beams, length, exponent):
    """The docstring's algorithm for one row, with lists. score(prefixes) -> log p of each."""
    alive, best = [()], (-np.inf, None)
    for t in range(length):
        longer = [(*prefix, token) for prefix in alive for token in (*WORDS, END)]
        values = score(longer)
        for row, value in zip(longer, values, strict=True):
            if row[-1] == END or t == length - 1:
                best = max(best, (value / (t + 1) ** exponent, row))
        going = sorted(((v, row) for row, v in zip(longer, values, strict=True) if row[-1] != END), reverse=True)
        alive = [row for _, row in going[:beams]]
    return best[1]


@pytest.mark.parametrize("beams", [1, 2])
def test_narrow_beam_equals_lists(agent, memory, beams):
    sentences = jax.jit(functools.partial(search.beam, beams=beams, length=5, exponent=0.6))(agent, memory)
    for i, row in enumerate(sentences):
        source = one(memory, i)
        assert strip(row) == narrow_beam(lambda rows, s=source: log_probs(agent, s, rows, 5), beams, 5, 0.6)


def test_greedy_takes_the_likeliest_token(agent, memory):
    sentences = np.asarray(jax.jit(functools.partial(search.greedy, length=5, shortest=3))(agent, memory))
    logits = np.asarray(score(agent, memory, sentences, 3)[0])
    np.testing.assert_array_equal(np.where(sentences != PAD, logits.argmax(-1), PAD), sentences)
    for row in sentences.tolist():
        assert PAD not in row[:3] and END not in row[:2]
        end = row.index(END) if END in row else 4
        assert all(token == PAD for token in row[end + 1 :])


def test_samples_have_the_probabilities_of_the_decoder(agent, memory):
    rows = list(sentences(3, 2))
    expected = np.exp(log_probs(agent, memory, rows, 3, 2))
    np.testing.assert_allclose(expected.sum(), 1, atol=1e-5)
    many = jax.tree.map(lambda x: np.repeat(np.asarray(x[:1]), 20_000, 0), memory)
    samples = jax.jit(functools.partial(search.sample, length=3, shortest=2))(agent, many, jax.random.key(1))
    counts = dict.fromkeys(rows, 0)
    for row in np.asarray(samples):
        counts[strip(row)] += 1  # a sentence that breaks the limits is a KeyError
    np.testing.assert_allclose(np.array(list(counts.values())) / 20_000, expected, atol=0.012)


GUMBEL = jax.jit(functools.partial(search.gumbel, temperature=0.5), static_argnames=("length", "shortest"))


def test_gumbel_choices_are_one_hot_and_stop_at_the_end(agent, memory):
    choices, logits = GUMBEL(agent, memory, jax.random.key(2), length=6, shortest=2)
    choices = np.asarray(choices)
    assert set(np.unique(choices)) == {0.0, 1.0}
    mask = choices.any(-1)
    tokens = np.where(mask, choices.argmax(-1), PAD)
    for row in tokens.tolist():
        assert row[0] not in (PAD, START, END)
        end = row.index(END) if END in row else 5
        assert all(t == PAD for t in row[end + 1 :]) and PAD not in row[:end]
    # It reads its own choices: the logits are those of teacher forcing on them.
    forced = score(agent, memory, tokens, 2)[0]
    np.testing.assert_allclose(np.where(mask[..., None], logits, 0), np.where(mask[..., None], forced, 0), atol=1e-5)


def test_straight_through_gradient_is_that_of_the_soft_sample(agent, memory):
    """One place: d(w . choice)/d(logits) = (diag(y) - y y') w / temperature, with y = softmax((logits + g) / temperature)."""
    w, key = np.array([0.3, -1, 2, 0.5, 1.5, -0.7]), jax.random.key(5)

    def loss(bias):
        changed = {**agent, "decoder": {**agent["decoder"], "out": {**agent["decoder"]["out"], "bias": bias}}}
        choices, logits = GUMBEL(changed, memory, key, length=1, shortest=1)
        return (choices[:, 0] @ w).sum(), logits

    grad, logits = jax.jit(jax.grad(loss, has_aux=True))(agent["decoder"]["out"]["bias"])
    noise = jax.random.gumbel(jax.random.fold_in(key, 0), (4, 6))
    expected = np.zeros(6)
    for z in np.asarray(logits[:, 0] + noise) / 0.5:
        y = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        expected += (np.diag(y) - np.outer(y, y)) @ w / 0.5
    np.testing.assert_allclose(grad, expected, atol=1e-5)
    assert np.abs(expected[2:]).max() > 0.05


def test_gradient_flows_through_what_the_decoder_reads(agent, memory):
    """The choice at place 0 changes the logits at place 1, so a loss on place 1 alone reaches the first embedding choice."""

    def loss(embed):
        changed = {**agent, "decoder": {**agent["decoder"], "embed": embed}}
        return GUMBEL(changed, memory, jax.random.key(2), length=2, shortest=2)[0][:, 1, 4].sum()

    grad = jax.jit(jax.grad(loss))(agent["decoder"]["embed"])
    grad = np.abs(grad).sum(1)
    assert grad[START] > 0 and grad[list(WORDS)].sum() > 0
