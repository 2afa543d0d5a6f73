"""Completion against naive PyTorch, where each of the 4B rows is scored by itself: losses, gradients, dense updates.

In double precision, so that only conventions can differ: Adagrad from zero divides every gradient by its own size, and its
first steps would blow up what float32 rounds (the tests that need no updates run in float32 too).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.kbc.complete import get_config
from kbc_jax import complete
from kbc_jax.facts import negatives
from kbc_jax.scoring import nets
from training.method import TrainState
from training.rng import key_for

torch = pytest.importorskip("torch", reason="the oracle: make parity installs it")
from benchmarks import kbc_torch  # noqa: E402

pytestmark = pytest.mark.parity

B, K, V, P, W, D, R = 16, 5, 60, 30, 4, 8, 34
CASES = {
    "factorized": ("factorized", {"share": 1}),
    "factorized, share 0": ("factorized", {"share": 0}),
    "factorized, share 3": ("factorized", {"share": 3}),
    "prototypical": ("prototypical", {"share": 1}),
    "dnn": ("dnn", {"relation_width": 6}),
    "bilinear": ("bilinear", {}),
}


@pytest.fixture(params=CASES)
def case(request):
    """(config, net of ours, net of torch in double precision) of one model; the same weights are `weights(torch's)`."""
    return build(*CASES[request.param])


def build(name, options):
    config = get_config(name)
    with config.unlocked():
        config.update({"batch": B, "l2": {"mode": "dense"}, "net": {"hidden": 12, **options}})
    generator = torch.manual_seed(0)
    model = {
        "factorized": lambda: kbc_torch.Factorized(R, D, 12, **options, terms=config.net.terms),
        "dnn": lambda: kbc_torch.DNN(R, D, 12, **options),
        "bilinear": lambda: kbc_torch.Bilinear(R, D, 12),
    }[config.net.kind]()
    words = torch.randn(V, D, generator=generator)
    return config, complete.build_net(config, D), kbc_torch.Completion(model, words, bn=config.net.bn).double()


def weights(net, take=lambda x: x):
    """Our parameter tree of what `take` takes from torch's parameters (their values, or gradients)."""

    def array(x):
        return take(x).detach().numpy().copy()

    def dense(linear):
        return {"kernel": array(linear.weight).T, "bias": array(linear.bias)}

    model = net.model
    if isinstance(model, kbc_torch.Factorized):
        tree = {f"maps_{name}": dense(linear) for name, linear in model.maps.items()} | {"w": array(model.w)}
    elif isinstance(model, kbc_torch.DNN):
        h, t, r = np.split(array(model.one.weight).T, [D, 2 * D])
        tree = {"w1_h": {"kernel": h}, "w1_t": {"kernel": t}, "w1_r": {"kernel": r, "bias": array(model.one.bias)}}
        tree |= {"w2": array(model.two.weight)[0], "b2": array(model.two.bias)[0]}
    else:
        tree = {"map": dense(model.map), "matrices": array(model.matrices)}
    if hasattr(model, "relations"):
        tree["relations"] = array(model.relations.weight)
    params = {"net": tree, "words": array(net.words)}
    return params | ({"norm": {"scale": array(net.norm.weight), "bias": array(net.norm.bias)}} if net.norm else {})


def statistics(net):
    """Our batch statistics before the first update."""
    return {"norm": {"mean": np.zeros(1), "var": np.ones(1)}} if net.norm else {}


def data(seed=0):
    """(words of the phrases int32 [P, W], triples int32 [K, B, 3]). The last ten words are in no phrase."""
    rng = np.random.default_rng(seed)
    words = rng.integers(1, V - 10, (P, W)) * (np.arange(W) < rng.integers(1, W + 1, (P, 1)))
    triples = np.stack([rng.integers(n, size=(K, B)) for n in (P, R, P)], -1)
    return words.astype(np.int32), triples.astype(np.int32)


def swaps_of(key, config, triples):
    """The corruptions that `loss_fn` draws from its key, for torch."""
    (swaps,) = negatives.draw(jax.random.split(key)[0], config.negatives, triples, None, None)
    return torch.tensor(np.asarray(swaps), dtype=torch.int64)


def torch_loss(net, config, words, triples, swaps):
    tensors = (torch.tensor(x, dtype=torch.int64) for x in (words, triples))
    return kbc_torch.loss(net, *tensors, swaps, scale=config.loss.scale, l2=config.l2.words)


def our_gradients(params, stats, config, net, words, triples, key):
    """((loss, new statistics), gradients) with the L2 of the word table, which `epoch` adds to the gradient itself."""

    def loss_of(params):
        h, t = (nets.phrase_mean(params["words"][w], w) for w in jnp.asarray(words)[triples[:, [0, 2]].T])
        loss, new = complete.loss_fn(params, stats, h, t, jnp.asarray(triples), key, {}, net=net, config=config)
        return loss + config.l2.words * (params["words"] ** 2).sum(), new

    return jax.jit(jax.value_and_grad(loss_of, has_aux=True))(params)


def compare(found, expected, tolerance):
    """Leaf by leaf, relative to a leaf's largest number; the gradient of w absolutely.

    That one is 0 but for the epsilon of batch normalisation, which undoes any scale: little is left of large terms.
    """
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, one), two in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        name = jax.tree_util.keystr(path)
        scale = 1 if name == "['net']['w']" else np.abs(two).max() + 1e-3
        np.testing.assert_allclose(one / scale, two / scale, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-12), (np.float32, 1e-5)])
def test_loss_and_gradients(case, dtype, tolerance):
    config, net, oracle = case
    words, (triples, *_) = data()
    with jax.enable_x64(dtype == np.float64):
        key = jax.random.key(3)
        swaps = swaps_of(key, config, triples)
        value = torch_loss(oracle, config, words, triples, swaps)
        value.backward()
        params, stats = jax.tree.map(lambda x: jnp.asarray(x, dtype), (weights(oracle), statistics(oracle)))
        shapes = jax.eval_shape(lambda: net.init(key, *(jnp.zeros((1, D)),) * 2, *(jnp.zeros(1, jnp.int32),) * 3, train=True))
        assert jax.tree.map(jnp.shape, params["net"]) == jax.tree.map(jnp.shape, shapes["params"]["model"])
        (loss, new), grads = our_gradients(params, stats, config, net, words, triples, key)
        np.testing.assert_allclose(loss, value.item(), rtol=tolerance)
        compare(grads, weights(oracle, lambda x: x.grad), tolerance)
        if oracle.norm:  # PyTorch's running variance is the unbiased one, Keras's and ours is not
            np.testing.assert_allclose(new["norm"]["mean"], oracle.norm.running_mean, rtol=0, atol=tolerance)
            biased = 0.99 + (oracle.norm.running_var - 0.99) * (4 * B - 1) / (4 * B)
            np.testing.assert_allclose(new["norm"]["var"], biased, rtol=tolerance)


def test_clipped_probabilities_have_no_gradient():
    """Keras and Lasagne clip the probability, we clip the logit (to seven digits the same)."""
    config, net, oracle = build(*CASES["factorized"])
    words, (triples, *_) = data()
    torch.nn.init.constant_(oracle.norm.weight, 10)
    with jax.enable_x64(True):
        key = jax.random.key(3)
        value = torch_loss(oracle, config, words, triples, swaps_of(key, config, triples))
        value.backward()
        params = jax.tree.map(jnp.asarray, weights(oracle))
        (loss, _), grads = our_gradients(params, statistics(oracle), config, net, words, triples, key)
        np.testing.assert_allclose(loss, value.item(), rtol=1e-6)
        compare(grads, weights(oracle, lambda x: x.grad), 1e-12)


def test_dense_updates(case):
    """An epoch of five updates, dropping no convention: dense L2 and Adagrad move the words of no phrase too."""
    config, net, oracle = case
    words, triples = data()
    optimiser, start = kbc_torch.adagrad(oracle, config.optim.lr), weights(oracle)
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, start)
        extra = {"stats": statistics(oracle), "plateau": {"scale": jnp.ones(())}}
        sums = jax.tree.map(jnp.zeros_like, params)
        state = TrainState(step=jnp.int32(0), seed=jnp.uint32(7), params=params, opt_state=sums, extra=extra)
        batch, consts = triples.swapaxes(0, 1).reshape(-1, 3), {"words": jnp.asarray(words), "sentences": jnp.zeros((P, 0))}
        state, metrics = jax.jit(lambda s, b: complete.epoch(s, b, consts, net=net, config=config))(state, batch)
        losses = []
        for some, key in zip(triples, jax.random.split(key_for(7, 0, "epoch"), K), strict=True):
            tensors = (torch.tensor(x, dtype=torch.int64) for x in (words, some))
            table_l2 = config.l2.words * (oracle.words**2).sum().item()
            swaps, options = swaps_of(key, config, some), {"scale": config.loss.scale, "l2": config.l2.words}
            losses.append(kbc_torch.update(oracle, optimiser, *tensors, swaps, **options) - table_l2)
        compare(state.params, weights(oracle), 1e-9)
        np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=1e-9)
        assert np.median(np.abs(state.params["words"] - start["words"])[-10:]) > 0.03  # 0.01 (1 + 1/sqrt 2 + ... + 1/sqrt 5)
