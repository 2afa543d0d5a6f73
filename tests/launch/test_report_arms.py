"""Which runs form an arm, and what an arm's curve is."""

from pathlib import Path

import numpy as np

from launch.report import arms
from launch.report.data import Series, ShownRun, flatten

NAN = float("nan")


def run(label, config=None, **series):
    arrays = {
        key.replace("_", "/", 1): Series(np.array(steps), np.array(values, float)[:, None])
        for key, (steps, values) in series.items()
    }
    return ShownRun(Path(label), label, flatten({"method": "m", "seed": 0} | (config or {})), {}, arrays, {}, None)


def names(*configs):
    return [arm.name for arm in arms.group_arms([run(f"r{i}", config) for i, config in enumerate(configs)])]


def one_arm(*runs):
    (arm,) = arms.group_arms(runs)
    return arm


def test_seeds_and_places_do_not_set_arms_apart():
    assert names({"seed": 0}, {"seed": 1, "workdir": "x"}, {"seed": 2, "cache_path": "y", "population": 4}) == ["m"]


def test_where_weights_come_from_sets_arms_apart_but_for_the_seed_in_the_path():
    def init(*paths):
        return names(*({"sources": {"init": path}, "seed": seed} for path, seed in paths))

    assert init(("", 0), ("pre/s0", 0)) == ["init=", "init=pre/s*"]
    assert len(init(("pre/0", 0), ("pre/1", 1))) == 1
    assert len(init(("a-seed0", 0), ("a-seed1", 0), ("b-seed0", 0))) == 2
    assert len(init(("pre-10k", 10), ("pre-100k", 100))) == 2
    assert len(names({"sources": {"reward": "judge/s0"}}, {"sources": {"reward": "judge/s1"}, "seed": 1})) == 1


def test_arms_are_named_by_keys_else_by_directory():
    assert names({"a": {"k": 1}, "b": {"k": 1}}, {"a": {"k": 2}, "b": {"k": "x"}}) == ["a.k=1, b.k=1", "a.k=2, b.k=x"]
    assert names({"lr": 1}, {"lr": 2}, {}) == ["lr=1", "lr=2", "default"]
    assert names(dict.fromkeys("pqrs", 1), dict.fromkeys("pqrs", 2)) == ["r0", "r1"]


def test_directory_name_leaves_the_seed_out():
    def common(*labels):
        return arms.directory_name(tuple(run(label, {"seed": seed}) for seed, label in enumerate(labels)))

    assert common("pong/seed0", "pong/seed1") == "pong"
    assert common("lr0.1-s0", "lr0.1-s1") == "lr0.1"
    assert common("seed0", "seed1") == "m"
    assert common("a/x", "a/y") == "a"


def test_seeds_at_other_steps_are_interpolated_but_never_extended():
    arm = one_arm(run("a", train_x=([10, 20, 30, 40], [0, 10, 20, 30])), run("b", {"seed": 1}, train_x=([15, 30], [4, 10])))
    curve = arms.curve(arm, "train/x")
    np.testing.assert_array_equal(curve.steps, [10, 15, 20, 30, 40])
    np.testing.assert_allclose(curve.mean, [0, (5 + 4) / 2, (10 + 6) / 2, (20 + 10) / 2, 30])
    np.testing.assert_allclose(curve.low, [0, 4, 6, 10, 30])
    np.testing.assert_array_equal(curve.count, [1, 2, 2, 2, 1])


def test_a_value_that_is_not_finite_leaves_its_neighbours_alone():
    curve = arms.curve(one_arm(run("a", eval_x=([1, 2, 3, 4], [NAN, 2, np.inf, 4]))), "eval/x")
    np.testing.assert_array_equal(curve.mean, [NAN, 2, NAN, 4])
    assert curve.not_finite == 2


def test_only_noisy_training_curves_are_smoothed():
    noise = 5 + np.random.default_rng(0).normal(size=400)
    steps = np.arange(400)
    arm = one_arm(run("a", train_loss=(steps, noise), train_lr=(steps, steps / 400), eval_loss=(steps, noise)))
    smooth, rate, evaluated = (arms.curve(arm, name) for name in ("train/loss", "train/lr", "eval/loss"))
    np.testing.assert_allclose(smooth.raw, noise)
    assert arms.smoothing_window(400) == 11
    np.testing.assert_allclose(smooth.mean[200], noise[195:206].mean())
    np.testing.assert_allclose(smooth.mean[0], noise[:6].mean())
    assert rate.raw is None and evaluated.raw is None


def test_final_values():
    runs = [run(str(i), {"seed": i}, eval_x=([1, 2], [0, v])) for i, v in enumerate([1.0, 2.0, 6.0, NAN])]
    three, two, none = (
        arms.final(one_arm(*runs), "eval/x"),
        arms.final(one_arm(*runs[:2]), "eval/x"),
        arms.final(one_arm(runs[3]), "eval/x"),
    )
    # t(0.975, 2) = 4.302653; the standard deviation of 1, 2, 6 is sqrt(7)
    np.testing.assert_allclose([three.mean, three.low, three.high, three.half], [3, 1, 6, 4.302653 * np.sqrt(7 / 3)], rtol=1e-6)
    assert (three.finite, three.seeds) == (3, 4)
    assert (two.mean, two.low, two.high, two.half) == (1.5, 1, 2, None)
    assert np.isnan(none.mean) and none.finite == 0
    assert arms.final(one_arm(runs[0]), "eval/y") is None


def test_speed_is_the_median_of_the_later_half():
    assert arms.steps_per_second(run("a", time_steps_per_second=([1, 2, 3, 4, 5, 6], [1, 1, 1, 50, 90, 51]))) == 51
