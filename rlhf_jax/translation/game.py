"""Fine-tuning in the translation game: the pair learns French-German through a message of English.

Arms by config (Noukhovitch et al. 2023 and the papers it compares with; docs/rlhf.md has the equations):

    estimator      'a2c', 'gumbel', or 'none': frozen English, only the receiver learns
    normalise      REINFORCE with normalised rewards (translation_game_drift)
    loss.kl        penalty on log pi / pi_0 of each message token, pi_0 the pretrained sender
    supervised     NLL on part A beside the game: of the sender alone (multitask) or of both (supervised self-play, S2P)
    sil            seeded iterated learning: `play` steps of the game, then `imitate` steps of students who learn from the pair
    elastic        Elastic Reset: the agents go back to their average, the average to the pretrained agents
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rlhf_jax.algorithms import elastic
from rlhf_jax.translation import nets, pretrain
from rlhf_jax.translation.corpus import SUBWORDS, GameSource, Pair, open_run
from rlhf_jax.translation.data import find_directory
from rlhf_jax.translation.evaluate import game_eval
from rlhf_jax.translation.objective import ESTIMATORS, imitation_loss, play_loss
from rlhf_jax.translation.pretrain import AGENTS, init_models, planned_sizes, read_pretrained
from training import optim
from training.data import DatasetStream
from training.errors import UserError
from training.method import Eval, EvalRun, Method, TrainState, on_first_run
from training.rng import key_for
from training.runs import Run
from training.sharding import batch_spec
from training.step import make_step


def sizes(config: ConfigDict) -> dict[str, int]:
    """Sizes of the vocabularies, {key in the config: subwords}. Raises UserError for a game without pretrained agents."""
    if not config.sources.init and find_directory(config.data.dir):  # random agents play on the toy grammar only, in tests
        raise UserError("the game needs pretrained agents: set --config.sources.init to the workdir of a pretraining run")
    return pretrain.sizes(config)


def check(config: ConfigDict) -> None:
    """Raise UserError for values that cannot work together."""
    if config.estimator not in ESTIMATORS:
        raise UserError(f"estimator {config.estimator!r} is unknown: use one of {', '.join(ESTIMATORS)}")
    if config.estimator != "a2c" and (config.loss.kl or config.normalise):
        raise UserError(f"estimator {config.estimator!r} has no reward to shape: set loss.kl to 0 and normalise to False")
    if config.elastic.mode not in elastic.TARGETS:
        raise UserError(f"elastic.mode {config.elastic.mode!r} is unknown: use one of {', '.join(elastic.TARGETS)}")
    if config.sil.on and min(config.sil.play, config.sil.imitate) < 1:
        raise UserError("sil.play and sil.imitate must be 1 or more")
    if config.sil.on and config.elastic.mode != "none":
        raise UserError("sil and elastic both replace the agents: use one of them")
    if not 1 <= config.message.shortest <= config.message.longest:
        raise UserError("message needs 1 <= shortest <= longest")


def make(config: ConfigDict, mesh: Mesh) -> Method:
    """The game of `config`, on part B of the data, from the agents of the pretraining run `config.sources.init`."""
    check(config)
    sentence = jax.ShapeDtypeStruct((config.data.length,), np.int32)
    supervised = [name for name in AGENTS if config.supervised[name]]
    spec = batch_spec(dict.fromkeys(["game", *supervised], Pair(sentence, sentence)), config.batch, mesh)
    tx, tx_imitate = optim.build(**config.optim), optim.build(**config.sil.optim)

    def start_game(state: TrainState, models: dict) -> TrainState:
        """`state` with `models` as the agents of a new game. Every part gets its own buffers, since the step donates them."""
        agents = {name: models[name] for name in AGENTS}
        copy = functools.partial(jax.tree.map, jnp.copy)
        extra = {"start": copy(agents), "lm": copy(models["lm"])}
        if config.sil.on:
            extra |= {"students": copy(agents), "students_opt": tx_imitate.init(agents)}
        if config.elastic.mode != "none":
            extra["ema"] = elastic.snapshot(agents)
        return state.replace(params={**copy(agents), "value": state.params["value"]}, extra=extra)

    def init(seed: jax.Array) -> TrainState:
        models, size = init_models(config, seed), planned_sizes(config.data)
        shape = nets.Sizes(size["fr"], size["en"], config.net.embed, config.net.hidden)
        value = nets.init_value(key_for(seed, 0, "init", "value"), shape)
        params = {**{name: models[name] for name in AGENTS}, "value": value}
        state = TrainState(step=jnp.int32(0), seed=jnp.uint32(seed), params=params, opt_state=tx.init(params))
        return start_game(state, models)

    def warm(state: TrainState, consts: Any) -> TrainState:
        shapes = {**state.extra["start"], "lm": state.extra["lm"]}
        models = read_pretrained(Run(config.sources.init), shapes, open_run(config))
        return start_game(state, jax.tree.map(jnp.asarray, models))

    step = make_step(functools.partial(play_loss, config=config), tx)
    if config.elastic.mode != "none":
        step = with_reset(step, tx, config.elastic)
    if config.sil.on:
        imitate = make_step(functools.partial(imitation_loss, config=config), tx_imitate)
        step = with_iterations(step, imitate, config.sil.play, config.sil.imitate)

    def evaluation(part: str, beams: int) -> EvalRun:
        return on_first_run(lambda: game_eval(config, open_run(config), part, beams))

    return Method(
        spec=spec,
        init=init,
        step=step,
        stream=lambda consts: DatasetStream(GameSource(open_run(config), supervised), spec, seed=config.seed),
        evals={"val": Eval(config.eval.every, evaluation("val", 1)), "test": Eval(0, evaluation("test", config.eval.beams))},
        warm=warm if config.sources.init else None,
        files=lambda: {SUBWORDS: open_run(config).subwords},
    )


def with_reset(step: Any, tx: Any, options: ConfigDict) -> Any:
    """`step` followed by Elastic Reset of both agents (Noukhovitch et al. 2023, algorithm 1).

    The average is updated after each step; a reset follows each `options.every`-th. The baseline, Adam's moments (unless
    `reset_opt`) and the learning rate go on. `extra`: 'start' theta_0, 'ema' theta_bar.
    """

    def elastic_step(state: TrainState, batch: Any, consts: Any) -> tuple[TrainState, dict]:
        state, metrics = step(state, batch, consts)
        average = elastic.ema_update(state.extra["ema"], state.params, options.decay)
        due = elastic.due(state.step, options.every)
        params, average, opt_state = elastic.reset(
            state.params, average, state.extra["start"], state.opt_state, due,
            to=options.mode, fresh_opt_state=tx.init(state.params) if options.reset_opt else None,
        )  # fmt: skip
        state = state.replace(params=params, opt_state=opt_state, extra={**state.extra, "ema": average})
        return state, {**metrics, "reset": due.astype(jnp.float32)}

    return elastic_step


def with_iterations(play: Any, imitate: Any, plays: int, imitations: int) -> Any:
    """Seeded iterated learning (Lu et al. 2020) as a step whose phase depends on `state.step`.

    `plays` steps of the game, then `imitations` steps in which the pair stands still as the teachers and the students of the
    generation before learn from it; after the last of them the students become the pair. Both optimisers go on.
    """

    def imitation_step(state: TrainState, batch: Any, consts: Any) -> tuple[TrainState, dict]:
        students = state.replace(params=state.extra["students"], opt_state=state.extra["students_opt"])
        students, metrics = imitate(students, batch, state.params)
        graduate = students.step % (plays + imitations) == 0
        teachers = {name: state.params[name] for name in AGENTS}
        pair = jax.tree.map(lambda student, teacher: jnp.where(graduate, student, teacher), students.params, teachers)
        extra = {**state.extra, "students": students.params, "students_opt": students.opt_state}
        return state.replace(step=students.step, params={**state.params, **pair}, extra=extra), metrics

    def step(state: TrainState, batch: Any, consts: Any) -> tuple[TrainState, dict]:
        playing = state.step % (plays + imitations) < plays
        state, metrics = jax.lax.cond(playing, play, imitation_step, state, batch, consts)
        return state, {**metrics, "imitating": 1 - playing.astype(jnp.float32)}

    return step
