"""Watch an agent play: full games, their scores, and a video in the console's own colours.

    python -m sgi.play WORKDIR [--step N] [--episodes N] [--epsilon E] [--seed S] [--out FILE.{gif,png,webp,mp4}] [--watch]
    python -m sgi.play --policy random --game Boxing

The games are those of an evaluation with one lane (`sgi.atari.evaluation`). The agent sees grey 84x84 frames; for the video
each game's actions are played again on a bare emulator, which gives the same game, sticky actions included.
"""

import argparse
import contextlib
import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
from ale_py import ALEInterface
from PIL import Image

from sgi.agent.learners import load_agent, load_config
from sgi.atari.emulator import FRAME_SKIP, AtariVec, display_name, replay
from sgi.atari.evaluation import Game, emulator_seed, make_env, play, random_policy
from sgi.reference.weights import atomic_file, check_suffix
from training import runtime
from training.cli import guarded
from training.errors import UserError

HEIGHT, WIDTH, HERTZ = 210, 160, 60  # of the console's screen
# GIF counts hundredths of a second, so it cannot have 60 Hz: a third of it, exactly. The step is odd, because sprites that are
# drawn in every second frame only would always or never be there with an even one.
KEEP = 3
PICTURES = {  # all lossless
    ".gif": {"format": "GIF", "optimize": True},
    ".png": {"format": "PNG"},
    ".webp": {"format": "WEBP", "lossless": True},
}
SCALE = 3  # of the window


def raw_frames(env: AtariVec, game: Game) -> Iterator[ALEInterface]:
    """The emulator at each of the 1 + 4 T raw frames of a game that was played in `env`. Read from it before going on."""
    options = {"full_action_space": env.full_action_space, "sticky": env.sticky, "seed": game.seed}
    score = 0
    for ale, reward in replay(env.game, game.noops, game.actions, **options):
        score += reward
        yield ale
    if score != game.score:
        raise RuntimeError(f"{env.game}: a game of score {game.score:g} had {score} when it was played again")


def write_video(path: Path, frames: Iterable[ALEInterface]) -> None:
    """Write raw frames as a video, in the format of the suffix: every `KEEP`-th one as pictures, or all of them as .mp4.

    Pictures take 34 kB of memory each until they are written: 80 MB for two minutes of play.
    """
    with atomic_file(path) as file:
        if path.suffix == ".mp4":
            _ffmpeg(os.path.abspath(file.name), path, frames)
            return
        screens, palette = [], np.zeros((256, 3), np.uint8)
        for ale in itertools.islice(frames, 0, None, KEEP):
            screens.append(ale.getScreen())
            palette[screens[-1]] = ale.getScreenRGB()
        pictures = [Image.frombytes("P", (WIDTH, HEIGHT), screen.tobytes()) for screen in screens]
        for picture in pictures:
            picture.putpalette(palette.tobytes())
        options = {"duration": 1000 * KEEP // HERTZ, "loop": 0, **PICTURES[path.suffix]}
        pictures[0].save(file, save_all=True, append_images=pictures[1:], **options)


def _ffmpeg(draft: str, path: Path, frames: Iterable[ALEInterface]) -> None:
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{WIDTH}x{HEIGHT}", "-r", str(HERTZ), "-i", "-"]
    command = ["ffmpeg", "-loglevel", "error", *source, "-pix_fmt", "yuv420p", "-f", "mp4", "-y", draft]
    with (
        tempfile.TemporaryFile("w+", errors="replace") as log,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=log) as process,
    ):
        with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
            for ale in frames:
                pipe.write(ale.getScreenRGB().tobytes())
        if process.wait():
            log.seek(0)
            raise UserError(
                f"ffmpeg could not make {path}: {' '.join(log.read().split()) or f'exit code {process.returncode}'}"
            )


def show(frames: Iterable[ALEInterface], pygame: ModuleType) -> None:
    """Show raw frames in a window, at the console's speed. Closing it ends the show."""
    pygame.init()
    try:
        window = pygame.display.set_mode((SCALE * WIDTH, SCALE * HEIGHT))
    except pygame.error as error:
        raise UserError(f"--watch cannot open a window: {error}") from error
    clock = pygame.time.Clock()
    for ale in frames:
        if any(event.type == pygame.QUIT for event in pygame.event.get()):
            break
        picture = pygame.surfarray.make_surface(ale.getScreenRGB().swapaxes(0, 1))
        window.blit(pygame.transform.scale(picture, window.get_size()), (0, 0))
        pygame.display.flip()
        clock.tick(HERTZ)
    pygame.quit()


def load_pygame() -> ModuleType:
    """The package pygame. Raises UserError where it is missing."""
    try:
        import pygame
    except ImportError as error:
        raise UserError("--watch needs the package pygame: pip install pygame, or leave it out") from error
    return pygame


def parse(argv: list[str]) -> argparse.Namespace:
    """The arguments, checked. Raises UserError for values that cannot be."""
    parser = argparse.ArgumentParser(
        prog="python -m sgi.play",
        description="Watch an agent play: full games, their scores, and a video in the console's own colours.",
    )
    parser.add_argument("workdir", nargs="?", help="a fine-tuning run")
    parser.add_argument("--step", type=int, help="which checkpoint; the newest by default")
    parser.add_argument("--member", type=int, default=0, help="which seed of a population, from 0 on")
    parser.add_argument("--episodes", type=int, default=1, help="how many games")
    parser.add_argument("--epsilon", type=float, help="share of random actions; default: config.eval.epsilon")
    parser.add_argument("--seed", type=int, help="of the games; default: the run's, whose evaluations start with the same game")
    parser.add_argument("--policy", choices=["agent", "random"], default="agent", help="random: uniformly random actions")
    parser.add_argument("--game", help="for --policy random without a run")
    parser.add_argument(
        "--out",
        type=Path,
        help=f"the video, {HEIGHT} x {WIDTH}: .gif, .png (animated) or .webp with every third of the console's {HERTZ} frames "
        "a second, in its exact colours; .mp4 with all of them, by ffmpeg. Default: play.gif in WORKDIR",
    )
    parser.add_argument("--watch", action="store_true", help="also show each game in a window once it is played; needs pygame")
    args = parser.parse_args(argv)
    if (args.workdir is None) == (args.game is None):
        raise UserError("give either the WORKDIR of a fine-tuning run, or --policy random with --game")
    if args.game is not None and args.policy == "agent":
        raise UserError("an agent comes from a WORKDIR: give that instead of --game, or --policy random")
    if args.episodes < 1:
        raise UserError(f"--episodes {args.episodes}: take 1 or more")
    if args.epsilon is not None and not 0 <= args.epsilon <= 1:
        raise UserError(f"--epsilon {args.epsilon}: take a value from 0 to 1")
    if args.seed is not None and not 0 <= args.seed < 2**32:
        raise UserError(f"--seed {args.seed}: take a value from 0 to 2^32 - 1")
    args.out = args.out or Path(args.workdir or ".") / "play.gif"
    check_suffix(args.out, (*PICTURES, ".mp4"))
    if args.out.suffix == ".mp4" and shutil.which("ffmpeg") is None:
        raise UserError(
            "an .mp4 needs the program ffmpeg, which is not on the PATH: install it, or write a .gif, .png or .webp"
        )
    return args


def main(argv: list[str]) -> None:
    """The command line."""
    args = parse(argv)
    pygame = load_pygame() if args.watch else None
    if args.game is not None:
        seed = args.seed or 0
        env = AtariVec(args.game, 1, seed=seed)
    else:
        config = load_config(args.workdir, args.member)
        runtime.setup(**config.runtime)
        seed = config.seed if args.seed is None else args.seed
        env = make_env(config, 1, emulator_seed(seed))
    if args.policy == "random":
        act = random_policy(env, seed)
    else:
        epsilon = config.eval.epsilon if args.epsilon is None else args.epsilon
        act = load_agent(config, args.workdir, step=args.step, member=args.member, seed=seed, epsilon=epsilon)
    games = []
    for game in itertools.islice(play(env, act), args.episodes):
        games.append(game)
        steps = len(game.actions)
        name = f"{display_name(env.game)}, game {len(games)}"
        print(f"{name}: score {game.score:g}, {steps} steps, {steps * FRAME_SKIP / HERTZ:.0f} s", flush=True)
        if pygame:
            show(raw_frames(env, game), pygame)
    env.close()
    write_video(args.out, itertools.chain.from_iterable(raw_frames(env, game) for game in games))
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    guarded(main)
