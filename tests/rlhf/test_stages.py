"""From supervised fine-tuning over a reward model to reinforcement learning, as a user chains runs; what each reports."""

import importlib
import json
import shutil
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import decoder, heads, tokenisers
from models.hub import folder as hub
from rlhf_jax import dpo, export, preferences, reward_model, rl, sft
from rlhf_jax import policy as policies
from rlhf_jax.policy import Policy
from rlhf_jax.rollouts import evaluate, judges, rows
from rlhf_jax.tasks import Examples, open_task
from rlhf_jax.tasks.tokenised import open_data, open_tokeniser
from training import config as configs
from training.errors import UserError
from training.metrics import read_rows
from training.runs import Run
from training.sharding import make_mesh, replicated
from training.testing import at, train

CONFIGS = Path(__file__).parents[2] / "configs" / "rlhf"
LENGTHS = rows.Lengths(6, 5, cut=True)


def load(spec, **overrides):
    return configs.load(f"{CONFIGS}/{spec}", {k.replace("__", "."): str(v) for k, v in overrides.items()})


def imdb(spec, **overrides):
    """The config with the data of the tiny SFT run."""
    config = load(spec, **overrides)
    with config.unlocked():
        config.data = load("sft.py:tiny").data
    return config


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Workdirs of a chain of runs: sft, judge (labels), pairs, proxy (on pairs made here), rl."""
    folder = tmp_path_factory.mktemp("chain")
    train(load("sft.py:tiny", optim__lr=3e-3, steps=20, eval__every=10, checkpoint__every=100), folder / "sft")
    labels = {"objective": "labels", "sources__init": folder / "sft"}
    train(imdb("reward_model.py:tiny", **labels), folder / "judge")
    pairs = preferences.make(str(folder / "sft"), judges.open_judge("length", ""), prompts=20, seed=0)
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    proxy = {"objective": "pairs", "sources__init": folder / "sft", "pairs": folder / "pairs.jsonl"}
    proxy |= {"optim__lr": 3e-3, "steps": 30, "checkpoint__every": 100}
    train(imdb("reward_model.py:tiny", **proxy), folder / "proxy")
    sources = {"sources__init": folder / "sft", "sources__reward": folder / "judge"}
    train(load("rl.py:tiny", reward__kind="model", gold__kind="lexicon", **sources), folder / "rl")
    return folder


def last(folder, prefix):
    row = [row for row in read_rows(folder / "metrics.jsonl") if any(name.startswith(prefix) for name in row)][-1]
    return {name.removeprefix(prefix): value for name, value in row.items() if name.startswith(prefix)}


def test_supervised_fine_tuning_lowers_the_loss_on_held_out_text(chain):
    losses = [row["eval/nll_human"] for row in read_rows(chain / "sft" / "metrics.jsonl") if "eval/nll_human" in row]
    assert losses[-1] < losses[0] < np.log(300) + 0.2  # 300 tokens
    assert "prompt:" in last(chain / "sft", "eval/")["samples"]["text"]


def test_stages_start_from_the_stage_before(chain):
    base = Run(chain / "sft").arrays()["params"]["policy"]
    config = at(load("rl.py:tiny", sources__init=chain / "sft"), "")
    policy = Policy(config, policies.model_config(config))
    jax.tree.map(np.testing.assert_array_equal, policy.start(), base)
    assert open_data(config)[0].name == "imdb"


def test_a_warm_start_says_what_it_takes(chain, tmp_path, caplog):
    caplog.set_level("INFO")
    train(load("rl.py:tiny", sources__init=chain / "sft", sources__value=chain / "proxy", steps=1), tmp_path)
    assert f"weights of step 20 of 20 (done), imdb, from {chain / 'sft'}" in caplog.text
    assert f"weights of step 30 of 30 (done), imdb, from {chain / 'proxy'}" in caplog.text


def test_a_later_stage_has_the_tokeniser_of_its_source(chain, tmp_path):
    """Few texts would make another BPE: the loss on held-out text begins where the first stage ended."""
    own = tokenisers.from_files({name: Run(chain / "sft").file(name) for name in ("tokenizer.json", "tokenizer_config.json")})
    config = load("rl.py:tiny", data__limit=20, sources__init=chain / "sft", steps=1)
    assert open_tokeniser(load("rl.py:tiny", data__limit=20)).files() != own.files()
    assert open_tokeniser(config).files() == own.files()
    train(config, tmp_path / "rl")
    assert Run(tmp_path / "rl").file("tokenizer.json") == own.files()["tokenizer.json"]
    texts = open_task(config.data).splits["validation"].head(config.eval.prompts)
    last_of_sft = Run(chain / "sft")
    full = open_task(last_of_sft.config.data).splits["validation"].head(config.eval.prompts)
    policy = Policy(at(config, ""), policies.model_config(at(config, "")))
    logps = evaluate.response_logps(policy, make_mesh(1))
    sampler = evaluate.rollout.sampler_of(config.sample)
    loss = lambda examples: evaluate.nll_of_texts(logps, examples, own, sampler, 8)(policy.base())  # noqa: E731
    assert last(tmp_path / "rl", "eval/")["nll_human_at_start"] == pytest.approx(loss(texts), rel=1e-4)
    assert last(chain / "sft", "eval/")["nll_human"] == pytest.approx(loss(full), rel=1e-4)


def test_the_run_itself_comes_first_and_other_tokenisers_are_refused(chain, tmp_path, caplog):
    own = open_tokeniser(load("sft.py:tiny")).files()
    assert open_tokeniser(at(load("sft.py:tiny", data__limit=20), chain / "sft")).files() == own
    for key, value in (("kind", "characters"), ("vocab", 290)):
        with pytest.raises(UserError, match=f"tokeniser.{key} is .*, but .*sft has"):
            open_tokeniser(load("rl.py:tiny", sources__init=chain / "sft", **{f"tokeniser__{key}": value}))
    tokenisers.characters("abc").save(tmp_path / "letters")
    other = {"tokeniser__kind": "file", "tokeniser__path": tmp_path / "letters"}
    with pytest.raises(UserError, match=r"is not the tokeniser of .*sft: leave it out"):
        open_tokeniser(load("rl.py:tiny", sources__init=chain / "sft", **other))
    assert open_tokeniser(load("rl.py:tiny", sources__init=chain / "sft", tokeniser__kind="file")).files() == own
    with pytest.raises(UserError, match=r"config\.model\.vocab is 290, but the data have 300"):
        at(load("rl.py:tiny", sources__init=chain / "sft", model__vocab=290), "")
    shutil.copytree(chain / "sft", tmp_path / "old")
    shutil.rmtree(tmp_path / "old" / "files")  # as an earlier version left it
    assert open_tokeniser(load("rl.py:tiny", data__limit=20, sources__init=tmp_path / "old")).files() == own
    assert "has no tokenizer.json (an earlier version trained it)" in caplog.text


def test_evaluations_use_the_consts_that_they_are_given(chain):
    """Against another reference policy the divergence is not 0; the config's own source is not looked at."""
    config = at(load("rl.py:tiny", sources__init=chain / "sft"), "")
    method = rl.make(config, make_mesh(1))
    consts = method.consts()
    state = method.warm(jax.jit(lambda: method.init(jnp.uint32(0)))(), consts)
    other = {**consts, "init": jax.tree.map(lambda x: 0.5 * x, consts["init"])}
    assert abs(method.evals["eval"].run(state, consts, 0)["kl"]) < 1e-5
    assert rl.make(config, make_mesh(1)).evals["eval"].run(state, other, 0)["kl"] > 0.01


@pytest.mark.parametrize("variant", ["sft.py:tiny", "reward_model.py:tiny", "dpo.py:tiny", "rl.py:tiny_lora"])
def test_consts_and_batches_are_what_make_says_without_data(variant, monkeypatch):
    """`make` knows neither data nor tokeniser; shapes, types and shardings are those of what is opened later."""
    module = importlib.import_module(load(variant).method)
    with monkeypatch.context() as closed:
        closed.setattr(tokenisers, "train_bpe", None)
        closed.setattr("rlhf_jax.tasks._open", None)
        planned = module.make(load(variant), make_mesh(1))
    assert module.sizes(load(variant)) == {"model.vocab": 300}
    consts = planned.consts()
    state = jax.jit(lambda: planned.init(jnp.uint32(0)), out_shardings=replicated(make_mesh(1)))()
    stream = planned.stream(consts)
    for found, spec in ((stream.next(state), planned.spec), (consts, planned.consts_spec)):
        assert jax.tree.structure(found) == jax.tree.structure(spec)
        jax.tree.map(lambda x, s: chex.assert_shape(x, s.shape), found, spec)
        assert jax.tree.map(lambda x, s: (x.dtype, x.sharding) == (s.dtype, s.sharding), found, spec) == jax.tree.map(
            lambda s: True, spec
        )
    stream.close()


def test_pairs_are_ordered_by_the_judge_and_learned(chain):
    pairs = [json.loads(line) for line in (chain / "pairs.jsonl").read_text().splitlines()]
    assert {row["split"] for row in pairs} <= {"train", "validation"}
    assert len(pairs) > 5
    assert all(min(len(row["chosen"]), 20) > min(len(row["rejected"]), 20) for row in pairs)  # the toy judge likes length
    metrics = [row["train/accuracy"] for row in read_rows(chain / "proxy" / "metrics.jsonl") if "train/accuracy" in row]
    assert np.mean(metrics[-5:]) > 0.8 > np.mean(metrics[:2])


def test_an_rl_run_reports_reward_drifts_and_where_it_began(chain):
    found = last(chain / "rl", "eval/")
    names = ("score", "gold", "win_rate", "kl", "nll_human", "nll_start", "ppl_response", "ppl_paper", "distinct_2", "length")
    assert {f"{name}{end}" for name in names for end in ("", "_at_start")} <= set(found)
    assert abs(found["kl_at_start"]) < 1e-5
    assert 0 < found["score"] < 1  # a probability
    assert found["ppl_paper"] < found["ppl_response"]
    assert "before:" in found["samples"]["text"] and "after:" in found["samples"]["text"]


def test_a_corpus_is_read_as_its_paper_reads_it(chain):
    """Perplexity of an untrained model is near the vocabulary's size; both styles by hand."""
    config = load("rl.py:tiny_lora")
    task, tokeniser = open_data(config)
    policy = Policy(config, policies.model_config(config))
    weights = policy.base()
    texts = [task.texts["validation"][0][:50], *task.texts["validation"][1:]]
    all_logps = evaluate.response_logps(policy, make_mesh(1))
    read = lambda: evaluate.perplexity_of_texts(all_logps, texts, tokeniser, config.eval)(weights)  # noqa: E731
    assert 0.8 * tokeniser.size < read()["ppl_corpus"] < 1.25 * tokeniser.size
    with config.unlocked():
        config.eval.corpus.update({"texts": 1, "window": 64, "style": "rl4lms"})
    ids = np.array(tokeniser.encode(texts[0]))[None]
    logps = decoder.token_logprobs(weights, policy.cfg, ids, np.ones_like(ids, bool))
    assert ids.shape[1] < 64  # one window
    assert read()["ppl_corpus"] == pytest.approx(float(jnp.exp(-logps[0, 1:].mean())), rel=1e-4)
    with config.unlocked():
        config.eval.corpus.style = "other"
    with pytest.raises(UserError, match="use one of rl4lms, stackllama"):
        rl.make(config, make_mesh(1))


def test_offline_dpo_learns_the_pairs(chain, tmp_path):
    overrides = {
        "sources__init": chain / "sft",
        "pairs": chain / "pairs.jsonl",
        "optim__lr": 3e-3,
        "steps": 30,
        "eval__every": 15,
    }
    config = load("dpo.py:tiny", checkpoint__every=100, **overrides)
    with config.unlocked():
        config.data = load("sft.py:tiny").data
    train(config, tmp_path / "dpo")
    lines = read_rows(tmp_path / "dpo" / "metrics.jsonl")
    assert lines[0]["train/loss"] == pytest.approx(np.log(2), abs=1e-4)  # policy and reference are one at first
    assert np.mean([row["train/accuracy"] for row in lines if "train/accuracy" in row][-5:]) > 0.8
    assert {"loss", "accuracy", "nll_human", "samples"} <= set(last(tmp_path / "dpo", "eval/"))
    with pytest.raises(UserError, match="loss 'ppo' is unknown: use one of dpo, ipo"):
        dpo.make(load("dpo.py:tiny", loss="ppo"), make_mesh(1))


def test_given_pairs_are_ordered_anew(chain):
    gold = judges.open_judge("length", "")
    with pytest.raises(UserError, match="imdb has no pairs to relabel"):
        preferences.relabel(str(chain / "sft"), gold)
    train(load("dpo.py:tiny", steps=1), chain / "qa")
    pairs = preferences.relabel(str(chain / "qa"), gold)
    task = open_task(load("dpo.py:tiny").data)
    assert len(pairs) == sum(len(task.pairs[split].prompts) for split in ("train", "validation"))
    assert all(min(len(row["chosen"]), 20) >= min(len(row["rejected"]), 20) for row in pairs)


def test_drifts_are_measured_at_temperature_1(chain, tmp_path):
    """Greedy texts of an all but untrained model: about log 300 nats a token, where tempered log-probs would be near 0."""
    config = load("rl.py:tiny", eval__temperature=0.001, steps=1, elastic__mode="none")
    train(config, tmp_path)
    found = last(tmp_path, "eval/")
    assert 3 < found["nll_start_at_start"] < np.log(300)
    assert found["ppl_response_at_start"] == pytest.approx(np.exp(found["nll_start_at_start"]), rel=0.2)
    assert last(tmp_path, "test/")["length"] > 0


def test_export_gives_a_folder_that_a_later_stage_starts_from(chain, tmp_path):
    export.export(str(chain / "sft"), tmp_path / "sft", None, "float32")
    export.export(str(chain / "judge"), tmp_path / "judge", None, "float32")
    config = at(load("rl.py:tiny", sources__init=tmp_path / "sft"), "")
    policy = Policy(config, policies.model_config(config))
    jax.tree.map(np.testing.assert_array_equal, policy.start(), Run(chain / "sft").arrays()["params"]["policy"])
    assert open_tokeniser(config).files() == open_tokeniser(load("sft.py:tiny")).files()  # the folder's
    assert hub.load(tmp_path / "judge")[1]["score"]["kernel"].shape == (32, 1)
    assert tokenisers.load(str(tmp_path / "sft")).size == policy.cfg.vocab
    with pytest.raises(UserError, match="a run without value"):
        export.export(str(chain / "sft"), tmp_path / "value", "value", "float32")


def test_a_trained_judge_scores_text_wherever_it_stands(chain):
    judge = judges.open_judge("model", str(chain / "judge"))(Examples([], [], []))
    texts = ["A fine film", "I slept", "A fine film", "good", "bad", "odd"]
    alone = np.concatenate([judge(np.arange(1), [""], [text]) for text in texts])
    together = judge(np.arange(6), ["A fine", "I", "A", "", "", ""], [" film", " slept", " fine film", "good", "bad", "odd"])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert together[0] == together[2]  # prompt and completion are read as one text
    with pytest.raises(UserError, match=r"not of rlhf_jax\.reward_model"):
        judges.open_judge("model", str(chain / "sft"))


def test_losses_of_reward_models_against_numpy():
    cfg = decoder.TransformerConfig(20, 1, 8, 2, 16)
    params = heads.with_head(jax.random.key(1), decoder.init(jax.random.key(0), cfg), cfg)
    rng = np.random.default_rng(0)
    side = lambda: {"ids": rng.integers(0, 20, (4, 6)).astype(np.int32), "mask": np.arange(6) < rng.integers(1, 7, (4, 1))}  # noqa: E731
    chosen, rejected = side(), side()
    at_last = lambda s: np.asarray(heads.values(params, cfg, s["ids"], s["mask"]))[np.arange(4), s["mask"].sum(1) - 1]  # noqa: E731
    batch = {f"{k}_{name}": v for name, s in (("chosen", chosen), ("rejected", rejected)) for k, v in s.items()}
    loss, metrics = reward_model.pair_loss(params, cfg, batch)
    gap = at_last(chosen) - at_last(rejected)
    assert float(loss) == pytest.approx(-np.log(1 / (1 + np.exp(-gap))).mean(), rel=1e-5)
    assert float(metrics["accuracy"]) == (gap > 0).mean()
    label = np.float32([1, 0, 1, 0])
    loss, _ = reward_model.label_loss(params, cfg, {**chosen, "label": label})
    p = 1 / (1 + np.exp(-at_last(chosen)))
    assert float(loss) == pytest.approx(-(label * np.log(p) + (1 - label) * np.log(1 - p)).mean(), rel=1e-5)


def test_cross_entropy_counts_the_marked_tokens():
    cfg = decoder.TransformerConfig(20, 1, 8, 2, 16)
    params, ids = decoder.init(jax.random.key(0), cfg), jnp.array([[1, 1, 5, 6, 7], [3, 4, 5, 1, 1]])
    mask = jnp.array([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]], bool)
    loss = jnp.array([[0, 0, 1, 0, 1], [1, 1, 1, 1, 1]], bool)
    found, count = sft.cross_entropy(params, cfg, {"ids": ids, "mask": mask, "loss": loss})
    z = jax.nn.log_softmax(decoder.logits(params, cfg, decoder.hidden(params, cfg, ids, mask)))
    wanted = [z[0, 3, 7], z[1, 0, 4], z[1, 1, 5]]  # a row's first real token has no context, padding does not count
    assert int(count) == 3
    assert float(found) == pytest.approx(-float(np.mean(wanted)), rel=1e-5)


def test_rows_of_tokens():
    tokeniser = tokenisers.characters("abcdefgh")
    a, b, c = tokeniser.encode("abc")
    prompts = rows.prompt_rows(["abc", "abcabcabc"], tokeniser, rows.Lengths(4, 1, cut=True))
    assert prompts.arrays["prompt"].tolist() == [[1, a, b, c], [c, a, b, c]]  # cut on the left
    assert prompts.arrays["prompt_mask"].tolist() == [[False, True, True, True], [True] * 4]
    found = rows.pieces(["abc", "a"], ["ab", "abcabc"], tokeniser, LENGTHS)
    assert found["ids"].tolist() == [[1, 1, 1, a, b, c, a, b, 0, 1, 1], [1, 1, 1, 1, 1, a, a, b, c, a, b]]
    assert found["loss"].sum(1).tolist() == [3, 5]  # with EOS; a long completion is cut and has none
    assert (found["mask"] == (found["ids"] != 1)).all()
    packed = rows.packed(["abc", "ab"], tokeniser, 3)
    assert packed.arrays["ids"].tolist() == [[a, b, c], [0, a, b]]
    labelled = rows.labelled_rows(["abcabc"], np.array([1]), tokeniser, 4)
    assert labelled.arrays["ids"].tolist() == [[c, a, b, c]]
    for broken in (lambda: rows.prompt_rows([], tokeniser, LENGTHS), lambda: rows.prompt_rows([""], tokeniser, LENGTHS)):
        with pytest.raises(UserError, match=r"no prompts|have no token"):
            broken()
    with pytest.raises(UserError, match="do not fill one row"):
        rows.packed(["ab"], tokeniser, 64)


def test_a_prompt_that_is_too_long_is_an_error_unless_it_may_be_cut():
    tokeniser = tokenisers.characters("abc")
    with pytest.raises(UserError, match="a prompt has 7 tokens"):
        rows.prompt_rows(["abcabca"], tokeniser, LENGTHS._replace(cut=False))
    assert rows.prompt_rows(["abcabca"], tokeniser, LENGTHS).arrays["prompt_mask"].all()


def test_blocks_cover_each_row_once():
    arrays = {"ids": np.arange(10)[:, None], "loss": np.ones((10, 1), bool)}
    blocks = evaluate.blocked(arrays, 4)
    assert [len(block["ids"]) for block in blocks] == [4, 4, 4]
    counted = np.concatenate([block["ids"][block["loss"]] for block in blocks])
    assert counted.tolist() == list(range(10))


def test_chunks_keep_the_order():
    x = jnp.arange(12.0)
    double = rl.in_chunks(lambda x, y: {"sum": x + y}, 3, x, x)
    np.testing.assert_array_equal(double["sum"], 2 * x)


def test_weights_of_another_shape_are_refused(chain):
    cfg = policies.model_config(load("sft.py:tiny", model__width=16))
    with pytest.raises(UserError, match=r"is \(2, 32\) there and \(2, 16\) here"):
        policies.load(str(chain / "sft"), cfg, ("policy",))
    with pytest.raises(UserError, match="a run without policy"):
        policies.load(str(chain / "judge"), policies.model_config(load("sft.py:tiny")), ("policy",))
