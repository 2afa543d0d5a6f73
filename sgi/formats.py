"""Formats of recorded play: told apart, opened for training, converted.

    python -m sgi.formats SOURCE DESTINATION --game Boxing [--shards 1/1,1/25] [--to dqn|arrayrecord|tfds]

SOURCE is a folder (or gs://...) of the DQN-Replay layout (`sgi.recordings.dqn_replay`), a folder of ArrayRecord files
(`sgi.recordings.arrayrecord`), or tensorflow-datasets' rlu_atari_checkpoints, `tfds` or `tfds:FOLDER`
(`sgi.recordings.rlds`). A conversion keeps (run, checkpoint) pairs and all kinds, bit for bit, but tensorflow-datasets has a
place for the four usual kinds only. What is made (DESTINATION/{Game}; of tensorflow-datasets, each run) must not exist; it
appears whole or not at all. Memory: blocks of rows. Disk: beside the result, 7 GB while a million frames of DQN-Replay files
are read.
"""

import argparse
import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from sgi.atari.emulator import display_name
from sgi.recordings import arrayrecord, dqn_replay, rlds
from sgi.recordings.dqn_replay import Store, default_cache, pick_shards
from training.cli import guarded
from training.errors import UserError

DQN, ARRAYRECORD, TFDS = "dqn", "arrayrecord", "tfds"
BLOCK = 4096  # rows converted at once
Shards = Sequence[tuple[int, int]] | Literal["all"]


def parse_shards(text: str, option: str) -> Shards:
    """'all', or '1/1,1/25' -> ((1, 1), (1, 25)): (run, checkpoint) pairs. `option` is named in the error."""
    if text == "all":
        return text
    try:
        pairs = [pair.split("/") for pair in text.split(",")]
        return tuple((int(run), int(checkpoint)) for run, checkpoint in pairs)
    except ValueError as error:
        raise UserError(f"{option} is {text!r}; write 'all' or run/checkpoint pairs such as '1/1,1/25'") from error


def format_of(root: str | os.PathLike, game: str) -> str:
    """What a folder holds of a game: 'dqn' (also if it holds nothing), 'arrayrecord' or 'tfds'."""
    if rlds.is_tfds(root):
        return TFDS
    files, base = dqn_replay.open_root(root)
    found = {
        DQN: dqn_replay.find_shards(files, f"{base}/{display_name(game)}"),
        ARRAYRECORD: arrayrecord.find(root, game),
        TFDS: "://" not in str(root) and rlds.find(root, game),
    }
    held = [form for form, shards in found.items() if shards]
    if len(held) > 1:
        raise UserError(f"{root} holds {display_name(game)} in {len(held)} formats ({', '.join(held)}): keep one in a folder")
    return held[0] if held else DQN


def open_play(root: str | os.PathLike, game: str, shards: Shards = "all", cache: str | os.PathLike | None = None) -> Store:
    """Opens recorded play of any format for random access; see `sgi.recordings.dqn_replay.open_store`.

    DQN-Replay frames are decoded into `cache` once, tensorflow-datasets is made an ArrayRecord file there once, and ArrayRecord
    files are read where they are.
    """
    form = format_of(root, game)
    if form == DQN:
        return dqn_replay.open_store(root, game, shards, cache=cache)
    if form == ARRAYRECORD:
        return arrayrecord.open_store(root, game, shards)
    folder, found = Path(cache) if cache else default_cache(), _prepared(root, game)
    return arrayrecord.store([(*pair, _cached(found[pair], folder)) for pair in pick_shards(found, shards, root, game)])


def convert(source: str, destination: str | Path, game: str, shards: Shards = "all", to: str | None = None) -> list[Path]:
    """Converts (run, checkpoint) pairs, or all that there are, and returns the files made. `to`: by default the other format.

    Raises UserError if the source lacks something or is damaged, or if there is anything of this game at the destination.
    """
    form, game, destination = format_of(source, game), display_name(game), Path(destination)
    to = to or (DQN if form == ARRAYRECORD else ARRAYRECORD)
    if to not in (DQN, ARRAYRECORD, TFDS):
        raise UserError(f"cannot convert to {to!r}: {DQN}, {ARRAYRECORD} or {TFDS}")
    target = destination / game
    if target.exists():
        raise UserError(f"{target} exists already: give another DESTINATION, or delete it")
    pairs = _pairs(form, source, game, shards)
    destination.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".converting-", dir=destination) as scratch:
        rows = lambda *pair: _shown(form, source, game, pair, scratch)  # noqa: E731
        if to == TFDS:
            runs = sorted({run for run, _ in pairs})
            chosen = {run: {c: rows(run, c) for r, c in pairs if r == run} for run in runs}
            return [path for run in runs for path in rlds.prepare(destination, game, run, chosen[run])]
        made = Path(scratch) / "made"
        for run, checkpoint in pairs:
            with _writer(to, made, game, run, checkpoint) as writer:
                for block in rows(run, checkpoint):
                    writer.append(**block)
        try:
            (made / game).rename(target)
        except OSError as error:
            raise UserError(f"{target} appeared meanwhile: give another DESTINATION") from error
    return sorted(path for path in target.rglob("*") if path.is_file())


def _prepared(root, game) -> dict[tuple[int, int], rlds.Split]:
    found = rlds.find(root, game)
    if not found:
        raise UserError(rlds.how_to_prepare(root, game))
    return found


def _pairs(form, source, game, shards):
    if form == TFDS:
        return pick_shards(_prepared(source, game), shards, source, game)
    if form == ARRAYRECORD:
        return pick_shards(arrayrecord.find(source, game), shards, source, game)
    files, base = dqn_replay.open_root(source)
    found = dqn_replay.find_shards(files, f"{base}/{game}")
    if not found:
        raise UserError(f"no recorded play of {game} under {source}: make some with python -m sgi.collect")
    return pick_shards(found, shards, source, game)


def _writer(to, root, game, run, checkpoint):
    if to == ARRAYRECORD:
        return arrayrecord.Writer(arrayrecord.file_of(root, game, run, checkpoint))
    return dqn_replay.Writer(root, game, run, chunk=sys.maxsize, first=checkpoint)


def _shown(form, source, game, pair, scratch) -> Iterator[dict[str, np.ndarray]]:
    """Blocks of rows of one checkpoint, counted on stderr. What is decoded for it is deleted behind it."""
    with (
        tempfile.TemporaryDirectory(dir=scratch) as cache,
        tqdm(desc="{} {}/{}".format(game, *pair), unit=" rows", unit_scale=True, file=sys.stderr) as progress,
    ):
        for block in _blocks(form, source, game, pair, Path(cache)):
            yield block
            progress.update(len(block["action"]))


def _blocks(form, source, game, pair, cache) -> Iterator[dict[str, np.ndarray]]:
    if form == TFDS:
        yield from rlds.blocks(_prepared(source, game)[pair])
        return
    store = open_play(source, game, [pair], cache=cache)
    for begin in range(0, store.num_frames, BLOCK):
        rows = slice(begin, min(begin + BLOCK, store.num_frames))
        index = np.arange(rows.start, rows.stop)
        yield {
            "observation": store.frames(index),
            "action": store.actions[rows],
            "reward": store.rewards[rows],
            "terminal": store.terminals[rows],
            **{channel: store.rows(channel, index) for channel in store.channels},
        }


def _cached(split: rlds.Split, folder: Path) -> Path:
    """The ArrayRecord file made of a split, named by a digest of where its files are, how long and how old."""
    files = [(str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns) for path in split.files()]
    target = folder / f"{hashlib.sha256(repr(files).encode()).hexdigest()[:32]}.array_record"
    if not target.exists():
        print(f"converting {split.name} of {split.builder.data_path} into {folder}", file=sys.stderr, flush=True)
        with arrayrecord.Writer(target) as writer:
            for block in rlds.blocks(split):
                writer.append(**block)
    return target


def main(argv: list[str]) -> None:
    """The command line: converts, and prints the files made."""
    parser = argparse.ArgumentParser(prog="python -m sgi.formats", description="Converts recorded play between formats.")
    parser.add_argument("source", help="folder or URL of recorded play; 'tfds' or 'tfds:FOLDER' for tensorflow-datasets")
    parser.add_argument("destination", help="root of the new files")
    parser.add_argument("--game", required=True, help="'boxing' or 'Boxing'")
    parser.add_argument("--shards", default="all", help="run/checkpoint pairs: 1/1,1/25")
    parser.add_argument("--to", choices=[DQN, ARRAYRECORD, TFDS], help="by default arrayrecord, and dqn from arrayrecord")
    args = parser.parse_args(argv)
    shards = parse_shards(args.shards, "--shards")
    print(*convert(args.source, args.destination, args.game, shards, args.to), sep="\n")


if __name__ == "__main__":
    guarded(main)
