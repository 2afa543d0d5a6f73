"""Atari 2600 games in parallel: one preprocessing for data, fine-tuning and evaluation (Schwarzer et al. 2021, Atari 100k).

4 raw frames per agent step, the pixelwise maximum of the last two, greyscale, area-resized to 84x84, 4 frames per stack,
uniform 1..30 no-ops at the start, no FIRE on reset, no sticky actions, 27,000 agent steps at most, unclipped rewards.

Deviations from the reference (rlpyt's environment): no no-op is issued on a life loss, since the vector emulator cannot move
one lane by one raw frame; the resize is by area (as the DQN Replay data are), there bilinear; the reference issues one more
no-op at the start (2..31); and its horizon is one step longer.

Legend: N lanes (environments), T agent steps.
"""

import difflib
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
from ale_py import ALEInterface, AtariVectorEnv, LoggerMode, roms
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from training.errors import UserError

# fmt: off
ATARI_100K = (  # the 26 games of Kaiser et al. 2020
    "alien", "amidar", "assault", "asterix", "bank_heist", "battle_zone", "boxing", "breakout", "chopper_command",
    "crazy_climber", "demon_attack", "freeway", "frostbite", "gopher", "hero", "jamesbond", "kangaroo", "krull",
    "kung_fu_master", "ms_pacman", "pong", "private_eye", "qbert", "road_runner", "seaquest", "up_n_down",
)
# fmt: on
FRAME_SKIP = 4
STACK = 4
SIZE = 84
FULL = 18  # actions of the full set

# Games by the size of their minimal action set (ale-py 0.12.1), so that a network has its shape without a ROM.
# fmt: off
ACTIONS = {game: size for size, games in {
    3: "backgammon freeway skiing",
    4: "atlantis atlantis2 blackjack breakout casino kaboom",
    5: "frogger pacman surround tetris video_checkers",
    6: "air_raid basic_math bowling carnival demon_attack galaxian king_kong name_this_game pong pooyan qbert sir_lancelot "
       "space_invaders up_n_down",
    7: "assault",
    8: "gopher phoenix tutankham",
    9: "asterix beam_rider crazy_climber enduro koolaid lost_luggage ms_pacman video_pinball",
    10: "amidar mr_do othello tic_tac_toe_3d time_pilot video_chess wizard_of_wor",
    12: "turmoil",
    14: "asteroids keystone_kapers kung_fu_master",
    16: "journey_escape",
    FULL: "adventure alien bank_heist battle_zone berzerk boxing centipede chopper_command crossbow darkchambers defender "
        "donkey_kong double_dunk earthworld elevator_action entombed et fishing_derby flag_capture frostbite gravitar hangman "
        "haunted_house hero human_cannonball ice_hockey jamesbond kangaroo klax krull laser_gates mario_bros miniature_golf "
        "montezuma_revenge pitfall pitfall2 private_eye riverraid road_runner robotank seaquest solaris space_war star_gunner "
        "superman tennis trondead venture video_cube word_zapper yars_revenge zaxxon",
}.items() for game in games.split()}
FULL_OF = {"lost_luggage": 9, "skiing": 9}  # the full set of games without a fire button
TWO_PLAYERS = ("combat", "joust", "maze_craze", "warlords")  # the emulator cannot start them for one
# fmt: on


def rom_name(game: str) -> str:
    """The game's name in ale-py: 'Pong' -> 'pong', 'MsPacman' -> 'ms_pacman'. UserError if it cannot be played."""
    plain = {rom.replace("_", ""): rom for rom in ACTIONS}
    spelling = game.replace("_", "").lower()
    if spelling in plain:
        return plain[spelling]
    if spelling in (name.replace("_", "") for name in TWO_PLAYERS):
        raise UserError(f"{game} is a game for two, which the emulator does not start: take another")
    near = [plain[name] for name in difflib.get_close_matches(spelling, plain)]
    hint = f"did you mean {', '.join(near)}?" if near else f"the Atari-100k games are {', '.join(ATARI_100K)}"
    raise UserError(f"unknown game {game!r}: {hint}")


def display_name(game: str) -> str:
    """The game's name in the DQN Replay data set and in score tables: 'ms_pacman' -> 'MsPacman'."""
    return "".join(word.capitalize() for word in rom_name(game).split("_"))


def single_game(game: str, *, sticky: float = 0.0, seed: int = 0) -> ALEInterface:
    """One bare emulator at the game's start; `seed` matters with sticky actions only."""
    ALEInterface.setLoggerMode(LoggerMode.Error)
    ale = ALEInterface()
    ale.setInt("random_seed", seed)
    ale.setFloat("repeat_action_probability", sticky)
    ale.loadROM(roms.get_rom_path(rom_name(game)))
    ale.reset_game()
    return ale


def num_actions(game: str, full: bool = False) -> int:
    """Size of the game's minimal action set, or of the full one. No emulator is opened; `AtariVec` checks it."""
    name = rom_name(game)
    return FULL_OF.get(name, FULL) if full else ACTIONS[name]


def episode_seed(seed: int, lane: int, episode: int, attempt: int) -> int:
    """The emulator's seed in [0, 2^31) for the `episode`-th game of a lane; `attempt` counts redraws of the no-ops."""
    return int(np.random.SeedSequence((seed, lane, episode, attempt)).generate_state(1)[0] >> 1)


class AtariVec(VectorEnv):
    """A vector of N lanes of one game behind Gymnasium's vector interface, with SAME_STEP autoreset.

    Observations: uint8 [N, 4, 84, 84], oldest frame first, zero before the first frame of an episode. With `life_loss`, a
    lost life reports `terminated` and zeroes the three older frames while the game goes on.

    A game is a function of (seed, lane, episode index, actions) and of nothing else: not of the other lanes, of the threads
    or of earlier games. That is why each game reseeds its emulator, which reloads the ROM and costs about 0.1 s: a plain
    reset is 15 times cheaper, but leaks state of the previous game in some games (Assault and Kung-Fu Master, for two).
    `get_state` and `set_state` rest on it: the emulator has no snapshot here, so running games are replayed.
    """

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012 (Gymnasium's own declaration)

    def __init__(
        self,
        game: str,
        num_envs: int,
        *,
        seed: int,
        noop_max: int = 30,
        max_steps: int = 27_000,
        sticky: float = 0.0,
        full_action_space: bool = False,
        life_loss: bool = True,
        num_threads: int = 0,
    ):
        """Units: `noop_max` raw frames (0: none), `max_steps` agent steps; `num_threads` 0: as many as lanes or cores."""
        self.game, self.num_envs = rom_name(game), num_envs
        self.noop_max, self.max_steps, self.life_loss = noop_max, max_steps, life_loss
        self.sticky, self.full_action_space = sticky, full_action_space
        self._emulators = AtariVectorEnv(
            self.game,
            num_envs,
            num_threads=num_threads,
            max_num_frames_per_episode=FRAME_SKIP * max_steps + 1,  # out of reach: there it would return a stale frame
            repeat_action_probability=sticky,
            full_action_space=full_action_space,
            stack_num=1,
            noop_max=noop_max + 1 if noop_max else 0,  # the emulator draws from 0..noop_max-1
            reward_clipping=False,
            use_fire_reset=False,
        )
        self._emulators.reset()  # masked resets are refused before a full one
        self.single_action_space = Discrete(self._emulators.single_action_space.n)
        if self.single_action_space.n != (known := num_actions(game, full_action_space)):
            self._emulators.close()
            raise UserError(f"{game} has {self.single_action_space.n} actions in this ale-py, not {known}: take the pinned one")
        self.single_observation_space = Box(0, 255, (STACK, SIZE, SIZE), np.uint8)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)

        self._seed = int(seed)
        self._episode = np.full(num_envs, -1)
        self._stack = np.zeros(self.observation_space.shape, np.uint8)
        self._actions = np.zeros((num_envs, max_steps), np.uint8)  # of the running games
        self._length = np.zeros(num_envs, np.int64)
        self._return = np.zeros(num_envs)
        self._lives = np.zeros(num_envs, np.int64)
        self.noops = np.zeros(num_envs, np.int64)  # raw frames at the start of the running games
        self.seeds = np.zeros(num_envs, np.int64)  # of the emulators, in the running games

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """Start the next game in every lane, or with a `seed` the first game of that seed; returns (observation, info)."""
        if seed is not None:
            self._seed, self._episode = int(seed), np.full(self.num_envs, -1)
        self._begin_next(np.ones(self.num_envs, bool))
        return self._stack.copy(), self._info(np.zeros(self.num_envs, bool))

    def step(self, actions):
        """One agent step: actions int [N] -> (observation, reward float32 [N], terminated, truncated bool [N], info).

        Rewards are unclipped. `terminated`: game over, or a lost life with `life_loss`. `truncated`: `max_steps` reached.
        `info` speaks of the step just taken: `game_over` bool [N], `lives` int [N], `episode_return` float64 [N] (unclipped,
        of the whole game up to and with this step), `episode_length` int [N]. Where a game was over or truncated the
        observation is the first of the next game, and `info` has `final_obs` [N, 4, 84, 84], valid in the rows that are
        marked in `_final_obs` bool [N].
        """
        if (self._episode < 0).any():
            raise ResetNeeded("call reset() before step()")
        actions = np.asarray(actions)
        if not ((actions >= 0) & (actions < self.single_action_space.n)).all():  # the emulator's threads would hang on it
            raise ValueError(f"{self.game} has actions 0..{self.single_action_space.n - 1}, got {actions}")
        reward, game_over, life_lost = self._advance(actions)
        truncated = (self._length >= self.max_steps) & ~game_over
        info, done = self._info(game_over), game_over | truncated
        if done.any():
            info |= {"final_obs": self._stack.copy(), "_final_obs": done}
            self._begin_next(done)  # before the next step, in which the emulator would restart a finished game by itself
        return self._stack.copy(), reward, game_over | (life_lost & self.life_loss), truncated, info

    def get_state(self) -> dict:
        """The episode index of each lane and the actions of its running game, as plain numpy arrays and ints."""
        if (self._episode < 0).any():
            raise ResetNeeded("call reset() before get_state()")
        histories = [row[:length] for row, length in zip(self._actions, self._length, strict=True)]
        return {
            "seed": self._seed,
            "episode": self._episode.copy(),
            "length": self._length.copy(),
            "actions": np.concatenate(histories),
        }

    def set_state(self, saved: dict) -> np.ndarray:
        """Rebuild the saved games exactly, by replaying their actions; returns the current observation [N, 4, 84, 84].

        Lanes move in lockstep: one with a shorter history idles, and starts its game when the others get that close to the end.
        """
        lengths = np.asarray(saved["length"])
        if lengths.shape != (self.num_envs,):
            raise UserError(
                f"the saved state has {lengths.size} Atari lanes, this run has {self.num_envs}: set the number back"
            )
        self._seed, self._episode = int(saved["seed"]), np.array(saved["episode"])
        starts = lengths.max() - lengths
        script = np.zeros((self.num_envs, lengths.max()), np.int64)
        for lane, history in enumerate(np.split(np.asarray(saved["actions"]), np.cumsum(lengths)[:-1])):
            script[lane, starts[lane] :] = history
        for t in range(lengths.max() + 1):
            self._begin(starts == t)
            if t < lengths.max():
                _, game_over, _ = self._advance(script[:, t])
                if (game_over & (starts <= t)).any():
                    raise UserError(f"the saved Atari state is not one of {self.game} under these settings")
        return self._stack.copy()

    def close_extras(self, **kwargs):
        """End the emulators' threads."""
        self._emulators = None

    def _info(self, game_over) -> dict:
        return {
            "game_over": game_over,
            "lives": self._lives.copy(),
            "episode_return": self._return.copy(),
            "episode_length": self._length.copy(),
        }

    def _begin_next(self, lanes):
        self._episode += lanes
        self._begin(lanes)

    def _begin(self, lanes):
        """Start game number `self._episode` in the masked lanes. A lane that drew zero no-ops draws again."""
        pending, attempt = lanes, 0
        while pending.any():
            seeds = [episode_seed(self._seed, lane, self._episode[lane], attempt) for lane in np.flatnonzero(pending)]
            frames, info = self._emulators.reset(seed=np.array(seeds), options={"reset_mask": pending})
            self.seeds[pending] = seeds
            self.noops[pending] = info["episode_frame_number"][pending]
            self._lives[pending] = info["lives"][pending]
            self._stack[pending, :-1] = 0
            self._stack[pending, -1] = frames[pending, 0]
            pending, attempt = pending & (self.noops == 0) & (self.noop_max > 0), attempt + 1
        self._length[lanes] = 0
        self._return[lanes] = 0

    def _advance(self, actions):
        """One step in every lane: (reward float32 [N], game over bool [N], a life but not the last was lost bool [N])."""
        frames, reward, game_over, _, info = self._emulators.step(actions.astype(np.int32))
        life_lost = (info["lives"] < self._lives) & (info["lives"] > 0) & ~game_over
        self._lives[:] = info["lives"]
        self._stack[:, :-1] = self._stack[:, 1:]
        self._stack[:, -1] = frames[:, 0]
        if self.life_loss:
            self._stack[life_lost, :-1] = 0
        self._actions[np.arange(self.num_envs), self._length] = actions
        self._length += 1
        self._return += reward
        return reward.astype(np.float32), game_over, life_lost


def replay(
    game: str, noops: int, actions: Sequence[int], *, full_action_space: bool = False, sticky: float = 0.0, seed: int = 0
) -> Iterator[tuple[ALEInterface, int]]:
    """Play one recorded game again on a bare emulator: yields (emulator, reward of this raw frame), 1 + 4 T times.

    First after the no-ops, then after every raw frame. `noops` is `AtariVec.noops` of that game, and `seed` its
    `AtariVec.seeds`, which sticky actions need. The emulator is the same object every time: read from it before going on.
    """
    ale = single_game(game, sticky=sticky, seed=int(seed))
    action_set = ale.getLegalActionSet() if full_action_space else ale.getMinimalActionSet()
    for _ in range(noops):
        ale.act(action_set[0])
    yield ale, 0
    for action in actions:
        for _ in range(FRAME_SKIP):
            yield ale, ale.act(action_set[action])


def record_ram(game: str, noops: int, actions: Sequence[int], **options: Any):
    """Play one recorded game again, see `replay`: (ram uint8 [T, 128], frames uint8 [T, 84, 84]).

    Row t is the console's memory at the moment when frame t was on the screen and `actions[t]` was chosen. The frames are those
    of `AtariVec`: compare them, to know that the replay is the same game.
    """
    screens, ram, frames = [], [], []
    for i, (ale, _) in enumerate(replay(game, noops, actions, **options)):
        screens = [*screens[-1:], ale.getScreenGrayscale()]
        if i % FRAME_SKIP == 0 and len(ram) < len(actions):
            ram.append(ale.getRAM())
            frames.append(area_resize(np.maximum(*screens) if i else screens[0]))
    return np.stack(ram), np.stack(frames)


def agent_step(ale: ALEInterface, action) -> tuple[float, np.ndarray]:
    """Take one action for 4 raw frames: (their reward, the pixelwise maximum of the last two: grey uint8 [210, 160])."""
    reward = sum(ale.act(action) for _ in range(FRAME_SKIP - 1))
    before_last = ale.getScreenGrayscale()
    reward += ale.act(action)
    return float(reward), np.maximum(before_last, ale.getScreenGrayscale())


def area_resize(image_HW):
    """Resize greyscale uint8 [210, 160] (any size not below 84) to uint8 [84, 84]: OpenCV's INTER_AREA, bit for bit."""
    height, width = image_HW.shape
    columns = _weighted_sum(image_HW.T.copy(), *_area_taps(width))  # transposed: gathering whole rows is faster
    return np.rint(_weighted_sum(columns.T.copy(), *_area_taps(height))).astype(np.uint8)


def _weighted_sum(x, index, weight):
    """The weighted sum of columns, from left to right in float32 as OpenCV adds: another order rounds otherwise."""
    total = x[index[0]] * weight[0][:, None]
    for i, w in zip(index[1:], weight[1:], strict=True):
        total += x[i] * w[:, None]
    return total


@cache
def _area_taps(source: int):
    """The source pixels under each target pixel, index [K, 84], and their shares of it, weight float32 [K, 84]."""
    scale = source / SIZE
    edges = np.arange(SIZE + 1) * scale
    first = np.floor(edges[:-1] + 1e-3).astype(int)
    index = first + np.arange(int(np.ceil(scale)) + 1)[:, None]
    overlap = np.minimum(index + 1, edges[1:]) - np.maximum(index, edges[:-1])
    weight = np.where(overlap > 1e-3, overlap / scale, 0)
    return np.minimum(index, source - 1), weight.astype(np.float32)
