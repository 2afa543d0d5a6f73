"""The game as a method: phases of iterated learning, resets, warm starts, evaluations, mistakes."""

import functools
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from rlhf_jax.translation import corpus, evaluate, game, losses, nets, pretrain, search
from training import config as configs
from training import population
from training.errors import UserError
from training.method import TrainState
from training.runs import Run
from training.sharding import make_mesh
from training.testing import toy_config, train

CONFIG = str(Path(__file__).parents[2] / "configs/rlhf/translation.py")


def load(variant, **values):
    return configs.load(f"{CONFIG}:{variant}", {"mesh.data": "1", **{k.replace("__", "."): str(v) for k, v in values.items()}})


@functools.cache
def words():
    return corpus.open_corpus(load("tiny_game").data)


def noise_state(method, seed):
    """A state of random numbers: its initialisation need not be compiled."""
    rng = np.random.default_rng(seed)

    def fill(x):
        return rng.normal(0, 0.3, x.shape).astype(x.dtype) if x.dtype == np.float32 else np.zeros(x.shape, x.dtype)

    return jax.tree.map(fill, jax.eval_shape(lambda: method.init(jnp.uint32(0))))


def tree(sender, receiver=0.0, value=None):
    agents = {"sender": {"w": jnp.float32(sender)}, "receiver": {"w": jnp.float32(receiver)}}
    return agents if value is None else {**agents, "value": {"w": jnp.float32(value)}}


def number(params, name="sender"):
    return float(params[name]["w"])


def shift(tx, by):
    """A step that adds `by` to every parameter, through `tx`."""

    def step(state, batch, consts):
        grads = jax.tree.map(lambda x: jnp.full_like(x, -by), state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        loss = jnp.float32(0) if consts == () else consts["sender"]["w"]  # what the teachers were
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state), {"loss": loss}

    return step


def test_phases_of_iterated_learning():
    """3 steps of play (+1 each), 2 of imitation (+10 each): the pair stands still there, then becomes the students."""
    tx = optax.sgd(1.0, momentum=0.0)
    step = jax.jit(game.with_iterations(shift(tx, 1.0), shift(tx, 10.0), 3, 2))
    params = tree(0, 0, 0)
    extra = {"students": tree(100, 100), "students_opt": tx.init(tree(0))}
    state = TrainState(step=jnp.int32(0), seed=jnp.uint32(0), params=params, opt_state=tx.init(params), extra=extra)
    pair, students, value, imitating, teachers = [], [], [], [], []
    for _ in range(10):
        state, metrics = step(state, (), ())
        pair.append(number(state.params))
        value.append(number(state.params, "value"))
        students.append(number(state.extra["students"]))
        imitating.append(float(metrics["imitating"]))
        teachers.append(float(metrics["loss"]))
    assert imitating == [0, 0, 0, 1, 1] * 2
    #        play     imitate   play            imitate: the students go on from where they were
    assert pair == [1, 2, 3, 3, 120, 121, 122, 123, 123, 140]
    assert students == [100, 100, 100, 110, 120, 120, 120, 120, 130, 140]
    assert teachers == [0, 0, 0, 3, 3, 0, 0, 0, 123, 123]
    assert value == [1, 2, 3, 3, 3, 4, 5, 6, 6, 6]  # the baseline is no student
    assert number(state.params, "receiver") == 140 and int(state.step) == 10


@pytest.mark.parametrize(("mode", "after"), [("elastic", "elastic"), ("ema", "ema"), ("init", "init")])
@pytest.mark.parametrize("reset_opt", [False, True])
def test_resets(mode, after, reset_opt):
    tx = optax.sgd(1.0, momentum=0.5)
    options = ConfigDict({"mode": mode, "decay": 0.75, "every": 3, "reset_opt": reset_opt})
    step = jax.jit(game.with_reset(shift(tx, 1.0), tx, options))
    params = tree(8, 4, 0)
    extra = {"start": tree(8, 4), "ema": tree(8, 4)}
    state = TrainState(step=jnp.int32(0), seed=jnp.uint32(0), params=params, opt_state=tx.init(params), extra=extra)
    theta, ema, speed = 8.0, 8.0, 0.0
    for t in range(1, 8):
        state, metrics = step(state, (), ())
        speed = 0.5 * speed + 1
        theta += speed
        ema = 0.75 * ema + 0.25 * theta
        if t % 3 == 0:
            theta, ema = {"elastic": (ema, 8.0), "ema": (ema, ema), "init": (8.0, 8.0)}[mode]
            speed = 0.0 if reset_opt else speed
        assert float(metrics["reset"]) == (t % 3 == 0)
        np.testing.assert_allclose([number(state.params), number(state.extra["ema"])], [theta, ema], rtol=1e-6)
        np.testing.assert_allclose(number(state.params, "receiver"), theta - 4, rtol=1e-6)
    assert number(state.params, "value") > 7 and number(state.extra["start"]) == 8


def test_elastic_reset_happens_in_a_run():
    """With real agents the average goes back to the start and the agents to the average; the baseline and Adam go on."""
    config = load("tiny_elastic", elastic__every=2, elastic__decay=0.75)
    method = build(game, config)
    stream = method.stream(())
    state = jax.jit(lambda: method.init(jnp.uint32(0)))()
    step, states = jax.jit(method.step), []
    for _ in range(2):
        state, metrics = step(state, stream.next(state), ())
        states.append(jax.device_get(state))
    one, two = states
    assert float(metrics["reset"]) == 1 and int(two.opt_state.inner_states["default"].inner_state[1].count) == 2
    jax.tree.map(np.testing.assert_array_equal, two.extra["ema"], two.extra["start"])
    start, ema, now = (x["sender"]["decoder"]["out"]["bias"] for x in (one.extra["start"], one.extra["ema"], two.params))
    first = one.params["sender"]["decoder"]["out"]["bias"]
    np.testing.assert_allclose(ema, 0.75 * start + 0.25 * first, atol=1e-7)
    assert np.abs(now - start).max() > 0
    second = (now - 0.75 * ema) / 0.25  # the agents just before the reset: one Adam step of at most lr from `first`
    assert 0 < np.abs(second - first).max() < 1.1 * config.optim.lr
    assert np.any(one.params["value"]["out"]["bias"] != two.params["value"]["out"]["bias"])


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """The workdir of a pretraining run of one step, and its parameters."""
    workdir = tmp_path_factory.mktemp("pretrain")
    return str(workdir), train(load("tiny_pretrain"), workdir, stop_after=1).params


def start_game(variant, source, **values):
    method = build(game, load(variant, sources__init=source, **values))
    return method.warm(jax.tree.map(jnp.asarray, noise_state(method, 0)), ())


def build(module, config):
    return module.make(population.measured(config), make_mesh(1, 1, 1, jax.devices()[:1]))


def test_game_starts_from_the_pretrained_models(pretrained):
    source, params = pretrained
    state = start_game("tiny_sil", source)
    for part in (state.params, state.extra["start"], state.extra["students"]):
        for name in ("sender", "receiver"):
            jax.tree.map(np.testing.assert_array_equal, part[name], params[name])
    jax.tree.map(np.testing.assert_array_equal, state.extra["lm"], params["lm"])
    buffers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(state)]
    assert len(set(buffers)) == len(buffers)  # the step donates them


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data__bpe": 150}, r"config\.data\.bpe is 150, but the run's subwords were made with 200"),
        ({"data__seed": 1}, "was trained on other data; config.data"),
        ({"net__embed": 4}, "lm/embed is .* there and .* here; use its config.net"),
    ],
)
def test_unfitting_pretraining(pretrained, values, message):
    with pytest.raises(UserError, match=message):
        start_game("tiny_game", pretrained[0], **values)


def test_game_speaks_the_subwords_of_its_source(pretrained, tmp_path, monkeypatch, caplog):
    """They are read from the source, not made anew, and saved in turn; a run of an earlier version saved none."""
    source, config = pretrained[0], load("tiny_game", sources__init=pretrained[0])
    corpus._open.cache_clear()  # or the corpus that pretraining made would do
    with monkeypatch.context() as patch:
        patch.setattr(corpus, "train_bpe", lambda texts, size: 1 / 0)
        subwords = build(game, config).files()[corpus.SUBWORDS]
    assert subwords == Run(source).file(corpus.SUBWORDS) and "saved no subwords" not in caplog.text
    shutil.copytree(source, tmp_path / "old")
    shutil.rmtree(tmp_path / "old" / "files")
    start_game("tiny_game", tmp_path / "old")
    assert "old has saved no subwords" in caplog.text


def test_vocabularies_have_the_sizes_of_the_config(pretrained):
    sizes = {lang: vocabulary.size for lang, vocabulary in words().vocabulary.items()}
    assert population.measured(load("tiny_pretrain")).data.vocabulary.to_dict() == sizes
    with pytest.raises(UserError, match=rf"data.vocabulary.en is 5, but the data have {sizes['en']}"):
        build(game, load("tiny_game", data__vocabulary__en=5, sources__init=pretrained[0]))


def test_a_plan_without_data_has_the_sizes_of_multi30k():
    for variant, bpe in (("game", 25_000), ("small_kl", 3000)):
        method = game.make(load(variant), make_mesh(1, 1, 1, jax.devices()[:1]))
        params = jax.eval_shape(method.init, jnp.uint32(0)).params
        biases = params["sender"]["decoder"]["out"]["bias"], params["receiver"]["decoder"]["out"]["bias"]
        assert [x.shape[0] for x in biases] == [pretrain.PUBLISHED[bpe][lang] for lang in ("en", "de")]


@pytest.mark.long
def test_published_sizes_are_those_of_multi30k():
    if not os.environ.get("QUINTET_DATA"):
        pytest.skip("QUINTET_DATA is not set: multi30k")
    sizes = pretrain.sizes(load("small_pretrain"))
    assert sizes == {f"data.vocabulary.{lang}": size for lang, size in pretrain.PUBLISHED[3000].items()}


def test_init_from_another_kind_of_run(tmp_path):
    train(toy_config(steps=1), tmp_path)
    with pytest.raises(UserError, match=r"is a run of training.testing, not of rlhf_jax\.translation\.pretrain"):
        start_game("tiny_game", str(tmp_path))


@pytest.mark.parametrize(
    ("variant", "values", "message"),
    [
        ("tiny_game", {"estimator": "ppo"}, "estimator 'ppo' is unknown"),
        ("tiny_gumbel", {"loss__kl": 0.1}, "has no reward to shape"),
        ("tiny_sil", {"elastic__mode": "elastic"}, "both replace the agents"),
        ("tiny_sil", {"sil__imitate": 0}, "must be 1 or more"),
        ("tiny_elastic", {"elastic__mode": "hard"}, "elastic.mode 'hard' is unknown"),
        ("tiny_game", {"message__shortest": 9}, "1 <= shortest <= longest"),
        ("tiny_game", {"batch": 7}, "not divisible"),
    ],
)
def test_configs_that_cannot_work(variant, values, message):
    with pytest.raises(UserError, match=message):
        game.make(load(variant, **values), make_mesh(8, 1, 1))


def test_real_data_need_pretrained_agents(tmp_path):
    with pytest.raises(UserError, match="needs pretrained agents"):
        build(game, load("tiny_game", data__dir=tmp_path))
    with pytest.raises(UserError, match=r"drop sources\.init"):
        build(pretrain, load("tiny_pretrain", sources__init=tmp_path))


# Evaluation


def test_bleu_by_hand():
    """Precisions 6/7, 4/6, 2/5, 1/4 and no brevity penalty; tokens are what blanks divide."""
    score = evaluate.bleu(["the cat sat on the mat ."], ["the cat sat on a mat ."])
    np.testing.assert_allclose(score, 100 * (6 / 7 * 4 / 6 * 2 / 5 * 1 / 4) ** 0.25, rtol=1e-6)
    assert evaluate.bleu(["a, b c d e"], ["a , b c d e"]) < 99 < evaluate.bleu(["a, b c d e"], ["a, b c d e"])
    np.testing.assert_allclose(evaluate.bleu(["a b c d"], ["a b c d e f"]), 100 * np.exp(1 - 6 / 4), rtol=1e-6)


def test_chunks_keep_every_row_once():
    run = evaluate.in_chunks(lambda fixed, x: {"y": fixed * x, "n": (x.sum(1),)}, 4)
    x = np.arange(22.0).reshape(11, 2)
    with jax.set_mesh(make_mesh(1, 1, 1, jax.devices()[:1])):
        outputs = run(jnp.float32(2), x)
    np.testing.assert_array_equal(outputs["y"], 2 * x)
    np.testing.assert_array_equal(outputs["n"][0], x.sum(1))


def test_game_scores_equal_those_computed_directly():
    """Numbers equal those computed directly; BLEU is 100 if the references are the pair's own words."""
    config = load("tiny_game", eval__sentences=5, eval__batch=4, message__longest=12, eval__samples=2)
    state = noise_state(build(game, config), 0)
    held = evaluate.first(words().held["val"], 5)
    fr, en = held.ids["fr"], held.ids["en"]

    @jax.jit
    def direct(state):
        sender = state.params["sender"]
        memory = nets.encode(sender, fr)
        message = search.greedy(sender, memory, length=12, shortest=3)
        german = search.greedy(state.params["receiver"], nets.encode(state.params["receiver"], message), length=24)
        lm = losses.cross_entropy(nets.lm_logits(state.extra["lm"], message), message)
        human = losses.cross_entropy(nets.logits(sender["decoder"], nets.force(sender, memory, en).feeds), en)
        return message, german, lm, human, (message != corpus.PAD).sum(1).mean()

    message, german, lm, human, length = direct(state)
    text = {name: words().vocabulary[name].decode(np.asarray(ids)) for name, ids in (("en", message), ("de", german))}
    mine = corpus.Held(held.ids, {**held.text, "en": tuple(text["en"]), "de": tuple(text["de"])})
    changed = words()._replace(held={"val": mine})
    with jax.set_mesh(make_mesh(1, 1, 1, jax.devices()[:1])):
        run = evaluate.game_eval(config, changed, "val", 1)
        scores, same = run(state, (), 0), run(state.replace(params={**state.params, **state.extra["start"]}), (), 0)
    np.testing.assert_allclose([scores["nll_lm"], scores["nll_en"], scores["length"]], [lm, human, length], rtol=1e-4)
    assert scores["bleu_de"] > 99.9 and scores["bleu_en"] > 99.9 and same["bleu_de"] < 50 and same["bleu_en"] < 50
    assert scores["kl"] > 1e-3 and abs(same["kl"]) < 1e-5
    blocks = scores["samples"].text.split("\n\n")
    assert len(blocks) == 2 and held.text["fr"][1] in blocks[1] and text["en"][1] in blocks[1] and text["de"][1] in blocks[1]
