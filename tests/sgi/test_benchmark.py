"""The benchmark's parts that take no time: rates of games, the refusal of a second compilation, the table."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks import sgi


def test_games_are_timed_on_both_sides():
    runs = sgi.games(2, 10)
    assert set(runs) == {"games_2", "gymnasium_2"} and all(run() > 0 for run in runs.values())


def test_an_update_that_compiles_again_is_refused():
    step = jax.jit(lambda state, batch, consts: (state + 1, {"loss": batch.sum()}))
    batches = iter([jnp.zeros(3), jnp.zeros(4)])

    class Growing:
        """A step that sees another shape each time."""

        _cache_size = step._cache_size

        def __call__(self, state, batch, consts):
            return step(state, next(batches), consts)

    run = sgi.seconds(Growing(), jnp.zeros(()), None, 1)
    with pytest.raises(RuntimeError, match="compiled again"):
        run()


def test_the_table_counts_in_yardsticks():
    result = {
        "cores": 2,
        "rounds": 3,
        "encoders": {"S": {"yardstick": 0.07, "finetune_S": 0.14, "pretrain_S": 0.35, "play_S": 9.0}},
        "games": {f"{side}_{n}": 100.0 * (side == "games") + 100 for side in ("games", "gymnasium") for n in sgi.GAMES},
    }
    text = sgi.table(result)
    assert "finetune update, batch 32       140 ms      2.0 yardsticks" in text
    assert "pretrain update, batch 64       350 ms      5.0 yardsticks" in text
    assert text.count("2.00 x") == 3
