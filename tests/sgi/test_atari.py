"""The Atari environment against independently written preprocessing; its promises: purity, life losses, autoreset, restore."""

import sys
import types

import ale_py
import gymnasium
import numpy as np
import pytest
from ale_py import roms
from gymnasium.error import ResetNeeded
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

from sgi.atari import emulator
from sgi.atari.emulator import (
    ATARI_100K,
    AtariVec,
    area_resize,
    display_name,
    num_actions,
    record_ram,
    rom_name,
    single_game,
)
from training.errors import UserError


def play(env, actions, first=None):
    """Step through `actions` [T, N] -> list of everything that a learner sees, first observation included."""
    outputs = [env.reset()[0] if first is None else first]
    for row in actions:
        obs, reward, terminated, truncated, info = env.step(row)
        outputs += [obs, reward, terminated, truncated, *(info[key] for key in sorted(info))]
    return outputs


def assert_same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


def random_actions(game, steps, lanes, seed=0):
    return np.random.default_rng(seed).integers(num_actions(game), size=(steps, lanes))


@pytest.fixture(scope="module")
def breakout():
    """300 steps of two lanes: about two games each, with several lost lives."""
    env, actions = AtariVec("breakout", 2, seed=5), random_actions("breakout", 300, 2)
    observations, starts = [env.reset()[0]], [(0, lane, env.noops[lane]) for lane in range(2)]
    rows = []
    for t, row in enumerate(actions):
        rows.append(env.step(row))
        observations.append(rows[-1][0])
        starts += [(t + 1, lane, env.noops[lane]) for lane in np.flatnonzero(rows[-1][4]["game_over"])]
    return actions, np.stack(observations), rows, starts


def test_names():
    assert rom_name("MsPacman") == rom_name("ms_pacman") == "ms_pacman"
    assert (display_name("ms_pacman"), display_name("UpNDown"), display_name("pong")) == ("MsPacman", "UpNDown", "Pong")
    assert len(set(ATARI_100K)) == 26
    assert [rom_name(display_name(game)) for game in ATARI_100K] == list(ATARI_100K)
    with pytest.raises(UserError, match="pong"):
        rom_name("pnog")
    assert (num_actions("pong"), num_actions("pong", full=True), num_actions("freeway")) == (6, 18, 3)


@pytest.mark.parametrize("games", [ATARI_100K, pytest.param(emulator.ACTIONS, marks=pytest.mark.long)], ids=["26", "all"])
def test_action_counts_are_those_of_the_emulator(games):
    """The table is right for every ROM that ale-py ships and that starts."""
    assert sorted([*emulator.ACTIONS, *emulator.TWO_PLAYERS]) == sorted(roms.get_all_rom_ids())
    for game in games:
        ale = single_game(game)
        sizes = len(ale.getMinimalActionSet()), len(ale.getLegalActionSet())
        assert sizes == (num_actions(game), num_actions(game, full=True)), game
    with pytest.raises(UserError, match="a game for two"):
        rom_name("Combat")


def test_an_emulator_with_other_actions_is_refused(monkeypatch):
    monkeypatch.setitem(emulator.ACTIONS, "pong", 5)
    with pytest.raises(UserError, match="pong has 6 actions in this ale-py, not 5"):
        AtariVec("pong", 1, seed=0)


def test_equals_gymnasium_preprocessing(monkeypatch):
    """Gymnasium's own wrappers, frame by frame.

    Where OpenCV is absent, our resize stands in for it (tested against the emulator's built-in OpenCV below), so that the
    skipping, the pooling and the stacking are compared anyway.
    """
    try:
        import cv2  # noqa: F401
    except ImportError:
        stub = types.ModuleType("cv2")
        stub.INTER_AREA, stub.resize = 3, lambda image, size, interpolation: area_resize(image)
        monkeypatch.setitem(sys.modules, "cv2", stub)
    gymnasium.register_envs(ale_py)
    single = gymnasium.make("ALE/MsPacman-v5", frameskip=1, repeat_action_probability=0.0, full_action_space=False)
    single = FrameStackObservation(AtariPreprocessing(single, noop_max=0), 4, padding_type="zero")
    ours = AtariVec("ms_pacman", 1, seed=0, noop_max=0, life_loss=False)
    np.testing.assert_array_equal(ours.reset()[0][0], single.reset(seed=1)[0])
    total = 0.0
    for action in random_actions("ms_pacman", 120, 1)[:, 0]:
        obs, reward, terminated, truncated, info = ours.step([action])
        obs_1, reward_1, terminated_1, truncated_1, _ = single.step(int(action))
        np.testing.assert_array_equal(obs[0], obs_1)
        assert (reward[0], terminated[0], truncated[0]) == (reward_1, terminated_1, truncated_1)
        total += reward_1
        assert info["episode_return"][0] == total
    assert total > 10  # unclipped: a pill is worth 10


def test_games_equal_a_bare_emulator(breakout):
    """Every game, the later ones too: so the emulator's own autoreset never acts after ours; `noops` counts the no-ops."""
    actions, observations, rows, starts = breakout
    assert len(starts) >= 4
    for begin, lane, noops in starts:
        ends = [t for t, other, _ in starts if other == lane and t > begin]
        end = min(ends, default=len(actions))
        ram, frames = record_ram("breakout", noops, actions[begin:end, lane])
        np.testing.assert_array_equal(frames, observations[begin:end, lane, -1])
        lives = np.array([info["lives"][lane] for *_, info in rows[begin : end - 1]])
        np.testing.assert_array_equal(ram[1:, 57], lives)  # the console's own count of lives
        assert 1 <= noops <= 30


def test_life_losses_and_game_over(breakout):
    _, observations, rows, _ = breakout
    lost = over = 0
    total = np.zeros(2)
    for t, (obs, reward, terminated, truncated, info) in enumerate(rows):
        total += reward
        for lane in range(2):
            before = rows[t - 1][4]["lives"][lane] if t and not rows[t - 1][4]["game_over"][lane] else 5
            if info["game_over"][lane]:
                over += 1
                assert terminated[lane] and info["_final_obs"][lane] and info["lives"][lane] == 0
                np.testing.assert_array_equal(info["final_obs"][lane, :3], observations[t, lane, 1:])
                assert not obs[lane, :3].any() and obs[lane, 3].any()  # the first stack of the next game
                assert info["episode_return"][lane] == total[lane]
                total[lane] = 0
            elif info["lives"][lane] < before:
                lost += 1
                assert terminated[lane] and not obs[lane, :3].any() and obs[lane, 3].any()
            else:
                assert not terminated[lane]
                np.testing.assert_array_equal(obs[lane, :3], observations[t, lane, 1:])
        assert not truncated.any()
    assert over >= 2 and lost >= 4 * over


def test_without_life_loss_only_game_over_ends(breakout):
    actions, observations, rows, _ = breakout
    env = AtariVec("breakout", 2, seed=5, life_loss=False)
    env.reset()
    zeroed = 0
    for t, row in enumerate(actions[:200]):
        obs, _, terminated, _, info = env.step(row)
        np.testing.assert_array_equal(obs[:, -1], observations[t + 1, :, -1])
        np.testing.assert_array_equal(terminated, info["game_over"])
        zeroed += int((rows[t][2] & ~terminated).sum())
    assert zeroed > 2  # lives were lost meanwhile


def test_lanes_are_independent_and_seeded():
    actions = random_actions("boxing", 60, 2, seed=3)
    two, one = AtariVec("boxing", 2, seed=7, num_threads=2), AtariVec("boxing", 1, seed=7)
    together, alone = play(two, actions), play(one, actions[:, :1])
    assert_same([x[:1] for x in together], alone)
    starts = [*two.noops]
    two.reset()
    starts += [*two.noops]
    assert len(set(starts)) == 4  # every lane and every game starts differently
    assert_same(play(two, actions, two.reset(seed=7)[0]), together)  # the same seed starts over


def test_truncation_ends_games_and_nothing_leaks_into_the_next():
    """Assault remembers the last game over a plain reset of the emulator, visibly from agent step 15 on."""
    env = AtariVec("assault", 1, seed=0, max_steps=20)
    obs, actions = env.reset()[0], random_actions("assault", 60, 1)
    for game in actions.reshape(3, 20):
        _, expected = record_ram("assault", env.noops[0], [*game, 0])
        for t, action in enumerate(game):
            np.testing.assert_array_equal(obs[0, -1], expected[t])
            assert t or not obs[0, :3].any()
            before = obs
            obs, _, terminated, truncated, info = env.step([action])
            assert info["episode_length"] == t + 1 and not terminated
            assert truncated == ("final_obs" in info) == (t == 19)
        assert info["_final_obs"].all()
        np.testing.assert_array_equal(info["final_obs"][0], [*before[0, 1:], expected[20]])


def test_state_round_trip_in_the_middle_of_games_of_different_length():
    """With sticky actions, so that the emulators' random numbers must come back too."""
    actions = random_actions("breakout", 260, 2, seed=1)
    env, other = (AtariVec("breakout", 2, seed=seed, sticky=0.25) for seed in (2, 99))
    play(env, actions[:200])
    saved = env.get_state()
    assert saved["length"][0] != saved["length"][1] and saved["episode"].max() > 0
    current = env._stack.copy()
    rest = play(env, actions[200:], current)
    other.reset()
    obs = other.set_state(saved)
    np.testing.assert_array_equal(obs, current)
    assert_same(play(other, actions[200:], obs), rest)


def test_sticky_actions_repeat_the_previous_action():
    actions = random_actions("boxing", 40, 1)
    plain, sticky = (play(AtariVec("boxing", 1, seed=0, sticky=p), actions) for p in (0.0, 0.25))
    np.testing.assert_array_equal(plain[0], sticky[0])
    assert any((a != b).any() for a, b in zip(plain[1:], sticky[1:], strict=True))


def test_misuse_is_told():
    env = AtariVec("pong", 1, seed=0)
    with pytest.raises(ResetNeeded):
        env.step([0])
    with pytest.raises(ResetNeeded):
        env.get_state()
    env.reset()
    with pytest.raises(ValueError, match=r"0\.\.5"):
        env.step([6])
    with pytest.raises(UserError, match="2 Atari lanes"):
        env.set_state({"seed": 0, "episode": np.zeros(2, int), "length": np.zeros(2, int), "actions": np.zeros(0, np.uint8)})
    too_long = {"seed": 0, "episode": np.zeros(1, int), "length": np.array([1200]), "actions": np.zeros(1200, np.uint8)}
    with pytest.raises(UserError, match="pong"):
        env.set_state(too_long)  # idling loses 21-0 before that many steps
