"""Playing: the games of the evaluation, the console's own frames, and what cannot be played."""

import itertools
import json
import os
import re
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from sgi import finetune, play
from sgi.agent import rainbow
from sgi.atari import evaluation
from sgi.atari.emulator import AtariVec, num_actions, record_ram, single_game
from sgi.atari.evaluation import Game, random_play, random_policy
from training import config as configs
from training.errors import UserError
from training.method import TrainState
from training.runs import Run
from training.sharding import make_mesh
from training.testing import train

ROOT = Path(__file__).parents[2]
STEPS = 60  # a game under the settings below
SETTINGS = {"mesh.data": "1", "env.game": "Boxing", "eval.lanes": "1", "eval.max_steps": f"{STEPS}", "env.sticky": "0.25"}


def load(**overrides):
    text = SETTINGS | {k.replace("__", "."): str(v) for k, v in overrides.items()}
    return configs.load(f"{ROOT}/configs/sgi/finetune.py:tiny", text)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with sticky actions and checkpoints of steps 1 and 2, which evaluates by half random actions in one lane."""
    folder = tmp_path_factory.mktemp("run")
    config = load(checkpoint__every=1, eval__epsilon=0.5)
    train(config, folder, stop_after=2)
    return folder


def read_output(capsys):
    """The scores that play printed."""
    return [float(score) for score in re.findall(r"game \d+: score (\S+), ", capsys.readouterr().out)]


def read_frames(path):
    """The pictures of a video, every 50 ms: uint8 [T, 210, 160, 3]."""
    with Image.open(path) as file:
        frames = []
        for i in range(file.n_frames):
            file.seek(i)
            file.load()
            frames += [np.asarray(file.convert("RGB"))] * round(file.info["duration"] / 50)
    return np.stack(frames)


def colours(game, *, sticky=0.0):
    """Every raw frame of a game, from the emulator itself."""
    ale = single_game("boxing", sticky=sticky, seed=game.seed)
    actions = ale.getMinimalActionSet()
    for _ in range(game.noops):
        ale.act(actions[0])
    frames = [ale.getScreenRGB()]
    for action in game.actions:
        for _ in range(4):
            ale.act(actions[action])
            frames.append(ale.getScreenRGB())
    return np.stack(frames)


@pytest.fixture
def played(monkeypatch):
    """The games that play plays, as it plays them."""
    games = []

    def watch(env, act):
        for game in real(env, act):
            games.append(game)
            yield game

    real = play.play
    monkeypatch.setattr(play, "play", watch)
    return games


def test_the_games_are_those_of_the_evaluation(run, tmp_path, capsys, played):
    config = Run(run).config
    arrays = Run(run).arrays()
    state = TrainState(arrays["step"], np.uint32(config.seed), arrays["params"], None, {"stats": arrays["extra"]["stats"]})
    with jax.set_mesh(make_mesh(1)):
        result = finetune.evaluator(config, rainbow.build_net(config))(state, (), 2)
    assert result["episodes"] == 2 and result["gameplay"].frames.shape == (15, 168, 168)  # 1 s
    play.main([str(run), "--episodes", "2", "--out", str(tmp_path / "a.gif")])
    scores = read_output(capsys)
    assert [game.score for game in played] == scores
    assert (min(scores), max(scores)) == (result["score_min"], result["score_max"]) and any(scores)
    assert [len(game.actions) for game in played] == [STEPS] * 2
    frames = read_frames(tmp_path / "a.gif")
    raw = np.concatenate([colours(game, sticky=0.25) for game in played])
    np.testing.assert_array_equal(frames, raw[::3])
    assert frames.shape == (-(-2 * (1 + 4 * STEPS) // 3), 210, 160, 3)
    _, replayed = record_ram("boxing", played[0].noops, played[0].actions, sticky=0.25, seed=played[0].seed)
    np.testing.assert_array_equal(
        result["gameplay"].frames[:, ::2, ::2], replayed[:15]
    )  # the evaluation's film of its first game


@pytest.mark.parametrize(("game", "full"), [("breakout", False), ("assault", True)])
def test_games_with_sticky_actions_are_replayed_exactly(game, full):
    """Games one after another in two lanes, as the agent saw them: so each has its own no-ops and emulator seed."""
    env = AtariVec(game, 2, seed=3, sticky=0.25, max_steps=200, full_action_space=full)
    screens, begin = [], [0, 0]
    random = random_policy(env, 0)
    for played in itertools.islice(play.play(env, lambda stack, t: screens.append(stack[:, -1]) or random(stack, t)), 4):
        options = {"full_action_space": full, "sticky": 0.25, "seed": played.seed}
        _, frames = record_ram(game, played.noops, played.actions, **options)
        begin[played.lane], first = len(screens), begin[played.lane]
        np.testing.assert_array_equal(frames, np.stack(screens[first:])[:, played.lane])
        assert sum(1 for _ in play.raw_frames(env, played)) == 1 + 4 * len(played.actions)  # and the score is the same
    assert min(begin) > 200


def test_seed_and_epsilon_matter(run, tmp_path, played):
    out = ["--out", str(tmp_path / "a.gif")]
    for options in ([], ["--seed", "1"], ["--epsilon", "0"]):
        play.main([str(run), *options, *out])
    first, seed, greedy = ((g.noops, g.seed, *g.actions) for g in played)
    assert len({first, seed, greedy}) == 3 and first[:2] == greedy[:2] and first[1] != seed[1]


def test_step_and_member_choose_the_weights(run, tmp_path, monkeypatch, capsys):
    states = []
    monkeypatch.setattr(evaluation, "policy", lambda act: lambda state, stack, t: states.append(state) or np.zeros(1, int))
    for options in (["--step", "1"], []):
        play.main([str(run), *options, "--out", str(tmp_path / "a.gif")])
    one, two = states[0], states[STEPS]
    saved = Run(run).arrays(1)["params"]["predictor"]["kernel"]
    assert np.array_equal(one.params["predictor"]["kernel"], saved) and not np.array_equal(
        two.params["predictor"]["kernel"], saved
    )
    assert (one.step, two.step) == (1, 2)
    arrays = {"params": {"w": np.arange(2)}, "step": np.array([5, 5]), "extra": {}}
    monkeypatch.setattr(Run, "arrays", lambda run, step, only: arrays)
    (tmp_path / "config.json").write_text(load(population=2, seed=7).to_json_best_effort())
    play.main([str(tmp_path), "--member", "1"])
    assert states[-1].params["w"] == 1 and states[-1].seed == 8 and states[-1].step == 5
    assert (tmp_path / "play.gif").is_file()
    with pytest.raises(UserError, match=r"--member 2: .* has the members 0\.\.1"):
        play.main([str(tmp_path), "--member", "2"])


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp"])
def test_pictures_are_exact(tmp_path, suffix):
    actions = np.random.default_rng(0).integers(num_actions("boxing"), size=STEPS)
    game = Game(0, 7, 0, actions[:20], 1.0)
    env = types.SimpleNamespace(game="boxing", full_action_space=False, sticky=0.0)
    play.write_video(tmp_path / f"a{suffix}", play.raw_frames(env, game))
    expected = colours(game)
    assert len(np.unique(expected[-1].reshape(-1, 3), axis=0)) > 4
    np.testing.assert_array_equal(read_frames(tmp_path / f"a{suffix}"), expected[::3])
    assert [path.name for path in tmp_path.iterdir()] == [f"a{suffix}"]


def test_a_replay_that_is_another_game_is_noticed(tmp_path):
    env = types.SimpleNamespace(game="boxing", full_action_space=False, sticky=0.0)
    with pytest.raises(RuntimeError, match="a game of score 3 had 0 when it was played again"):
        play.write_video(tmp_path / "a.gif", play.raw_frames(env, Game(0, 7, 0, np.zeros(2, int), 3.0)))
    assert not list(tmp_path.iterdir())


def test_random_play_needs_no_run(tmp_path, monkeypatch, capsys):
    """Random play without a run is a whole game, the one that `random_play` scores."""
    monkeypatch.chdir(tmp_path)
    frames = []
    monkeypatch.setattr(play, "write_video", lambda path, raw: frames.append(sum(1 for _ in raw)) or path.touch())
    play.main(["--policy", "random", "--game", "MsPacman", "--seed", "3"])
    expected = random_play("ms_pacman", 1, 3)
    assert read_output(capsys) == [expected["score"]]
    assert frames == [1 + 4 * expected["episode_length"]]
    assert (tmp_path / "play.gif").exists()


def test_random_play_under_the_settings_of_a_run(tmp_path, played):
    """Random play takes the settings of a run, whose checkpoint is not needed."""
    (tmp_path / "config.json").write_text(load(eval__max_steps=5).to_json_best_effort())
    play.main([str(tmp_path), "--policy", "random"])
    expected = np.random.default_rng(0).integers(num_actions("boxing"), size=5)
    np.testing.assert_array_equal(played[0].actions, expected)


FFMPEG = """#!{python}
import json, sys
data = sys.stdin.buffer.read()
json.dump([sys.argv[1:], len(data)], open({record!r}, "w"))
open(sys.argv[-1], "wb").write(data[:100800])
"""


def fake_ffmpeg(folder, text, monkeypatch):
    folder.mkdir()
    (folder / "ffmpeg").write_text(text)
    (folder / "ffmpeg").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_ffmpeg_gets_every_frame(tmp_path, monkeypatch):
    """A stand-in for ffmpeg takes down its arguments and the number of bytes."""
    record = tmp_path / "record.json"
    fake_ffmpeg(tmp_path / "bin", FFMPEG.format(python=sys.executable, record=str(record)), monkeypatch)
    game = Game(0, 7, 0, np.zeros(5, int), 0.0)
    env = types.SimpleNamespace(game="boxing", full_action_space=False, sticky=0.0)
    monkeypatch.chdir(tmp_path)
    play.write_video(Path("-a b.mp4"), play.raw_frames(env, game))
    arguments, size = json.loads(record.read_text())
    assert size == 21 * 210 * 160 * 3
    assert arguments[arguments.index("-s") + 1] == "160x210" and arguments[arguments.index("-r") + 1] == "60"
    assert Path(arguments[-1]).is_absolute()  # or a name that begins with a dash would be an option
    assert (tmp_path / "-a b.mp4").read_bytes() == colours(game)[0].tobytes()


def test_ffmpeg_fails(tmp_path, monkeypatch):
    fake_ffmpeg(tmp_path / "bin", "#!/bin/sh\necho no such\necho codec >&2\nexit 1\n", monkeypatch)
    frames = itertools.repeat(single_game("boxing"), 500)
    with pytest.raises(UserError, match=r"ffmpeg could not make .*a\.mp4: codec"):
        play.write_video(tmp_path / "a.mp4", frames)
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


def stub_pygame(monkeypatch, quit_after):
    """A stub of pygame with the parts that a window needs; the user closes it after some frames."""
    pictures, ticks = [], []
    window = types.SimpleNamespace(get_size=lambda: (480, 630), blit=lambda picture, at: pictures.append(picture))
    pygame = types.ModuleType("pygame")
    pygame.error, pygame.QUIT, pygame.init, pygame.quit = RuntimeError, 1, lambda: None, lambda: None
    pygame.display = types.SimpleNamespace(set_mode=lambda size: window, flip=lambda: None)
    closed = types.SimpleNamespace(type=1)
    pygame.event = types.SimpleNamespace(get=lambda: [closed] if len(pictures) == quit_after else [])
    pygame.surfarray = types.SimpleNamespace(make_surface=lambda pixels: pixels)
    pygame.transform = types.SimpleNamespace(scale=lambda picture, size: picture)
    pygame.time = types.SimpleNamespace(Clock=lambda: types.SimpleNamespace(tick=ticks.append))
    monkeypatch.setitem(sys.modules, "pygame", pygame)
    return pygame, pictures, ticks


@pytest.mark.parametrize("quit_after", [None, 10])
def test_watch(run, tmp_path, monkeypatch, played, quit_after):
    _, pictures, ticks = stub_pygame(monkeypatch, quit_after)
    play.main([str(run), "--watch", "--out", str(tmp_path / "a.gif")])
    expected = colours(played[0], sticky=0.25)[:quit_after]
    np.testing.assert_array_equal(np.stack(pictures).swapaxes(1, 2), expected)  # pygame is column first
    assert ticks == [60] * len(expected)
    assert len(read_frames(tmp_path / "a.gif")) == 81  # all of the game


def test_no_window(monkeypatch):
    pygame, *_ = stub_pygame(monkeypatch, None)

    def refuse(size):
        raise pygame.error("no available video device")

    pygame.display.set_mode = refuse
    with pytest.raises(UserError, match="cannot open a window: no available video device"):
        play.show([], pygame)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("", "give either the WORKDIR of a fine-tuning run, or --policy random with --game"),
        ("run --game Boxing", "give either the WORKDIR"),
        ("--game Boxing", "give that instead of --game, or --policy random"),
        ("--policy random --game Boxxing", "did you mean boxing"),
        ("run --episodes 0", "--episodes 0: take 1 or more"),
        ("run --epsilon 2", "--epsilon 2.0: take a value from 0 to 1"),
        ("run --seed -1", "--seed -1: take a value"),
        ("run --out a.avi", "a.avi: the name must end in .gif or .png or .webp or .mp4"),
        ("run --out a.mp4", "needs the program ffmpeg, which is not on the PATH"),
        ("run --watch", "pip install pygame"),
        ("run --member 1", "has the members 0..0"),
        ("run --step 7", "no checkpoint of step 7"),
        ("nothing", "no run in nothing"),
        ("pretrained", "is a run of sgi.pretrain, not of sgi.finetune"),
        ("empty", "train there first"),
    ],
)
def test_mistakes(run, tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "pygame", None)
    for name, config in (("pretrained", configs.base("sgi.pretrain")), ("empty", load())):
        Path(name).mkdir()
        Path(name, "config.json").write_text(config.to_json_best_effort())
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        play.main([str(run) if word == "run" else word for word in argv.split()])
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("play*"))
