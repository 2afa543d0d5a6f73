"""Recorded play of any format: told apart and opened for training."""

import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from sgi.atari.emulator import display_name
from sgi.recordings import arrayrecord, dqn_replay, rlds
from sgi.recordings.dqn_replay import Store, default_cache, pick_shards
from training.errors import UserError

DQN, ARRAYRECORD, TFDS = "dqn", "arrayrecord", "tfds"
Shards = Sequence[tuple[int, int]] | Literal["all"]


def parse_shards(text: str, option: str) -> Shards:
    """The (run, checkpoint) pairs of a text: 'all', or '1/1,1/25' -> ((1, 1), (1, 25)). `option` is named in the error."""
    if text == "all":
        return text
    try:
        pairs = [pair.split("/") for pair in text.split(",")]
        return tuple((int(run), int(checkpoint)) for run, checkpoint in pairs)
    except ValueError as error:
        raise UserError(f"{option} is {text!r}; write 'all' or run/checkpoint pairs such as '1/1,1/25'") from error


def format_of(root: str | os.PathLike, game: str) -> str:
    """The format in which a folder holds a game: 'dqn' (also if it holds nothing), 'arrayrecord' or 'tfds'."""
    if rlds.is_tfds(root):
        return TFDS
    files, base = dqn_replay.open_root(root)
    shards = {
        DQN: dqn_replay.find_shards(files, f"{base}/{display_name(game)}"),
        ARRAYRECORD: arrayrecord.find(root, game),
        TFDS: "://" not in str(root) and rlds.find(root, game),
    }
    formats = [form for form, pairs in shards.items() if pairs]
    if len(formats) > 1:
        raise UserError(
            f"{root} holds {display_name(game)} in {len(formats)} formats ({', '.join(formats)}): keep one in a folder"
        )
    return formats[0] if formats else DQN


def open_play(root: str | os.PathLike, game: str, shards: Shards = "all", cache: str | os.PathLike | None = None) -> Store:
    """Open recorded play of any format for random access; see `sgi.recordings.dqn_replay.open_store`.

    DQN-Replay frames are decoded into `cache` once, tensorflow-datasets is made an ArrayRecord file there once, and ArrayRecord
    files are read where they are.
    """
    form = format_of(root, game)
    if form == DQN:
        return dqn_replay.open_store(root, game, shards, cache=cache)
    if form == ARRAYRECORD:
        return arrayrecord.open_store(root, game, shards)
    folder, splits = Path(cache) if cache else default_cache(), find_splits(root, game)
    return arrayrecord.store([(*pair, _convert(splits[pair], folder)) for pair in pick_shards(splits, shards, root, game)])


def find_splits(root: str | os.PathLike, game: str) -> dict[tuple[int, int], rlds.Split]:
    """The splits of tensorflow-datasets' folder by (run, checkpoint). Raises UserError that says how to prepare them."""
    splits = rlds.find(root, game)
    if not splits:
        raise UserError(rlds.how_to_prepare(root, game))
    return splits


def _convert(split: rlds.Split, folder: Path) -> Path:
    """Convert a split to an ArrayRecord file, unless it is in `folder`; returns its path.

    The name is a digest of the paths, sizes and times of the split's files.
    """
    files = [(str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns) for path in split.files()]
    target = folder / f"{hashlib.sha256(repr(files).encode()).hexdigest()[:32]}.array_record"
    if not target.exists():
        print(f"converting {split.name} of {split.builder.data_path} into {folder}", file=sys.stderr, flush=True)
        with arrayrecord.Writer(target) as writer:
            for block in rlds.blocks(split):
                writer.append(**block)
    return target
