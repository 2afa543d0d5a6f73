"""Ranks against brute force: every candidate scored as a row of its own, Python sets for filtering, double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kbc_jax import complete
from kbc_jax.facts.data import RELATIONS, Lexicon, Triples, load_graph
from kbc_jax.scoring import nets, ranking
from training.errors import UserError

D, S = 10, 4
PAIRS = {"share": 1, "hidden": 12}
NETS = {
    "factorized": ("factorized", True, PAIRS),
    "prototypical": ("factorized", True, {**PAIRS, "terms": ("hr", "rt")}),
    "dnn": ("dnn", False, {"hidden": 12, "relation_width": 6}),
    "bilinear": ("bilinear", False, {"hidden": 7}),
    "fusion": ("fusion", False, {"hidden": 12, "product": 8}),
}


@pytest.fixture(scope="module")
def graph():
    """(words, sentences, test, known) of the toy facts; seven phrases have the words of the first test triple's tail."""
    train, valid, test = load_graph("cn100k", "toy")
    lexicon = Lexicon.build(train, valid, test, width=4)
    words = lexicon.phrase_words.copy()
    sentences = np.random.default_rng(0).normal(size=(len(words), S))
    questions = lexicon.ids(test)[:11]
    twins = np.r_[3:40:6, questions[0, 2]]
    words[twins], sentences[twins] = words[questions[0, 2]], sentences[questions[0, 2]]
    return words, sentences, questions, lexicon.ids(Triples.concatenate(train, valid, test))


def scorer(name, vocabulary, dtype=np.float64):
    """(net, params, stats): random weights, and batch statistics that are not those of a start."""
    kind, bn, options = NETS[name]
    net = nets.build(kind, relations=len(RELATIONS), width=D + S, bn=bn, **options)
    x, i = jnp.zeros((1, D + S)), jnp.zeros(1, jnp.int32)
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), x, x, i, i, i, train=True))
    rng = np.random.default_rng(1)
    variables = jax.tree.map(lambda v: (rng.random(v.shape) - 0.3).astype(dtype), shapes)
    variables["batch_stats"] = {"norm": {"mean": np.full(1, 0.5, dtype), "var": np.full(1, 2, dtype)}} if bn else {}
    params = {"net": variables["params"]["model"], "words": rng.normal(size=(vocabulary, D)).astype(dtype)}
    if bn:
        params["norm"] = variables["params"]["norm"]
    return net, params, variables["batch_stats"]


def brute(net, params, stats, words, sentences, test, known):
    P, known, ranks = len(words), set(map(tuple, known.tolist())), []
    triples = np.repeat(test, 2 * P, 0).reshape(-1, 2, P, 3)
    triples[:, 0, :, 0] = triples[:, 1, :, 2] = np.arange(P)
    h, r, t = triples.reshape(-1, 3).T
    scores = complete.score(params, stats, words[np.stack([h, t])], sentences[np.stack([h, t])], r, net)
    for asked, score, answer in zip(
        triples.reshape(-1, P, 3), np.asarray(scores).reshape(-1, P), test[:, [0, 2]].ravel(), strict=True
    ):
        stay = [i for i in range(P) if i == answer or tuple(asked[i].tolist()) not in known]
        apart = score[stay] - score[answer]
        ranks.append(1 + (apart > 1e-9).sum() + ((abs(apart) < 1e-9).sum() - 1) / 2)
    return np.reshape(ranks, (-1, 2))


@pytest.mark.parametrize("name", NETS)
def test_ranks_are_those_of_brute_force(name, graph):
    """Ranks are right with blocks that divide neither questions nor phrases, and with tied phrases."""
    words, sentences, test, known = graph
    with jax.enable_x64(True):
        net = scorer(name, words.max() + 1)
        ranks = ranking.ranks(*net, words, sentences, test, known, block=4, candidates_block=37)
        expected = brute(*net, words, sentences, test, known)
    np.testing.assert_array_equal(ranks, expected)
    assert len(np.unique(ranks)) > 8 and (ranks[0, 1] - 1) % 1 == 0.5  # 8 phrases tie with the first tail: 3.5 above it


@pytest.mark.parametrize("name", ["factorized", "fusion"])
def test_blocks_do_not_matter_in_single_precision(name, graph):
    """An answer's score stands in the grid to the last bit: were it not there, its rank would lose a half."""
    words, sentences, test, known = graph
    words = np.unique(words, axis=0)  # no ties
    sentences, test, known = sentences[: len(words)], test % len(words), known % len(words)
    net = scorer(name, words.max() + 1, np.float32)
    many = ranking.ranks(*net, words, sentences.astype(np.float32), test, known, block=3, candidates_block=50)
    one = ranking.ranks(*net, words, sentences.astype(np.float32), test, known)
    assert (many % 1 == 0).all() and (one % 1 == 0).all()
    np.testing.assert_allclose(many, one, atol=1)  # rounding may swap neighbours


def test_known_answers_leave_the_ranking(graph):
    """Phrases are numbers here, and a head and a tail fit the better the larger their product."""
    net = nets.build("factorized", relations=2, width=1, bn=False, hidden=1, terms=("ht",), normalise=False)
    one = {"kernel": np.ones((1, 1)), "bias": np.zeros(1)}
    tree = {"relations": np.zeros((2, 1)), "maps_a": one, "maps_b": one, "w": np.ones(()), "c": np.zeros(())}
    params = {"net": tree, "words": np.arange(7.0)[:, None]}
    words, sentences = np.arange(7)[:, None], np.zeros((7, 0))
    test = np.array([[2, 0, 3], [2, 1, 3]])

    def tails(*known):
        return ranking.ranks(net, params, {}, words, sentences, test, np.array([*test, *known]))[:, 1].tolist()

    assert tails() == [4, 4]  # 6, 5, 4, 3
    assert tails((2, 0, 5), (2, 0, 5), (2, 0, 1)) == [3, 4]  # once; the other relation does not care; 1 ranks lower anyway
    assert tails((2, 0, 4), (2, 0, 5), (2, 0, 6), (5, 0, 6)) == [1, 4]


def test_one_score_for_all_is_the_middle_rank(graph):
    words, sentences, test, _ = graph
    net, params, stats = scorer("dnn", words.max() + 1)
    nothing = jax.tree.map(np.zeros_like, params)
    ranks = ranking.ranks(net, nothing, stats, words, sentences, test, test, candidates_block=64)
    others = [[sum(h != a and (r, t) == (b, c) for a, b, c in set(map(tuple, test.tolist()))),
               sum(t != c and (h, r) == (a, b) for a, b, c in set(map(tuple, test.tolist())))] for h, r, t in test]  # fmt: skip
    np.testing.assert_array_equal(ranks, (len(words) - np.array(others) + 1) / 2)


def test_measures_by_hand(monkeypatch):
    monkeypatch.setattr(ranking, "ranks", lambda *_, **__: np.array([[1, 10.5], [2, 3], [4, 1.5], [1, 10]]))
    measures = ranking.link_prediction(*[None] * 7)
    head, tail = {"mrr": (1 + 0.5 + 0.25 + 1) / 4, "hits@1": 0.5, "hits@3": 0.75, "hits@10": 1}, measures["tail"]
    assert measures["head"] == head
    assert tail == pytest.approx({"mrr": (2 / 21 + 1 / 3 + 2 / 3 + 0.1) / 4, "hits@1": 0, "hits@3": 0.5, "hits@10": 0.75})
    assert measures["mean"] == pytest.approx({name: (head[name] + tail[name]) / 2 for name in head})


def test_link_prediction_hands_its_arguments_on(graph):
    words, sentences, test, known = graph
    net = scorer("factorized", words.max() + 1)
    measures = ranking.link_prediction(*net, words, sentences, test, known, block=5, candidates_block=64)
    rank = ranking.ranks(*net, words, sentences, test, known, block=5, candidates_block=64)
    assert measures["tail"] == ranking.summary(rank[:, 1]) != measures["head"]


def test_nothing_to_rank_and_a_net_that_diverged(graph):
    words, sentences, test, known = graph
    net, params, stats = scorer("dnn", words.max() + 1)
    with pytest.raises(UserError, match="no test triples"):
        ranking.ranks(net, params, stats, words, sentences, test[:0], known)
    params["net"]["w2"] = params["net"]["w2"] * np.nan
    with pytest.raises(UserError, match="not finite"):
        ranking.ranks(net, params, stats, words, sentences, test, known)
