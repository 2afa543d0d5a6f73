"""Conversion of recorded play between formats.

    python -m sgi.formats SOURCE DESTINATION --game Boxing [--shards 1/1,1/25] [--to dqn|arrayrecord|tfds]

SOURCE is a folder (or gs://...) of the DQN-Replay layout (`sgi.recordings.dqn_replay`), a folder of ArrayRecord files
(`sgi.recordings.arrayrecord`), or tensorflow-datasets' rlu_atari_checkpoints, `tfds` or `tfds:FOLDER`
(`sgi.recordings.rlds`). A conversion keeps (run, checkpoint) pairs and all kinds, bit for bit, but tensorflow-datasets has a
place for the four usual kinds only. What is made (DESTINATION/{Game}; of tensorflow-datasets, each run) must not exist; it
appears whole or not at all. Memory: blocks of rows. Disk: beside the result, 7 GB while a million frames of DQN-Replay files
are read.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from sgi.atari.emulator import display_name
from sgi.recordings import arrayrecord, dqn_replay, rlds
from sgi.recordings.dqn_replay import pick_shards
from sgi.recordings.open import ARRAYRECORD, DQN, TFDS, Shards, find_splits, format_of, open_play, parse_shards
from training.cli import guarded
from training.errors import UserError

BLOCK = 4096  # rows converted at once


def convert(source: str, destination: str | Path, game: str, shards: Shards = "all", to: str | None = None) -> list[Path]:
    """Convert (run, checkpoint) pairs, or all that there are, and return the files made. `to`: by default the other format.

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
        rows = lambda *pair: _blocks_with_progress(form, source, game, pair, scratch)  # noqa: E731
        if to == TFDS:
            runs = sorted({run for run, _ in pairs})
            blocks = {run: {c: rows(run, c) for r, c in pairs if r == run} for run in runs}
            return [path for run in runs for path in rlds.prepare(destination, game, run, blocks[run])]
        staging = Path(scratch) / "made"
        for run, checkpoint in pairs:
            with _writer(to, staging, game, run, checkpoint) as writer:
                for block in rows(run, checkpoint):
                    writer.append(**block)
        try:
            (staging / game).rename(target)
        except OSError as error:
            raise UserError(f"{target} appeared meanwhile: give another DESTINATION") from error
    return sorted(path for path in target.rglob("*") if path.is_file())


def _pairs(form, source, game, shards):
    if form == TFDS:
        return pick_shards(find_splits(source, game), shards, source, game)
    if form == ARRAYRECORD:
        return pick_shards(arrayrecord.find(source, game), shards, source, game)
    files, base = dqn_replay.open_root(source)
    available = dqn_replay.find_shards(files, f"{base}/{game}")
    if not available:
        raise UserError(f"no recorded play of {game} under {source}: make some with python -m sgi.collect")
    return pick_shards(available, shards, source, game)


def _writer(to, root, game, run, checkpoint):
    if to == ARRAYRECORD:
        return arrayrecord.Writer(arrayrecord.file_of(root, game, run, checkpoint))
    return dqn_replay.Writer(root, game, run, chunk=sys.maxsize, first=checkpoint)


def _blocks_with_progress(form, source, game, pair, scratch) -> Iterator[dict[str, np.ndarray]]:
    """Blocks of rows of one checkpoint, counted on stderr. Deletes what it decoded for them."""
    with (
        tempfile.TemporaryDirectory(dir=scratch) as cache,
        tqdm(desc="{} {}/{}".format(game, *pair), unit=" rows", unit_scale=True, file=sys.stderr) as progress,
    ):
        for block in _blocks(form, source, game, pair, Path(cache)):
            yield block
            progress.update(len(block["action"]))


def _blocks(form, source, game, pair, cache) -> Iterator[dict[str, np.ndarray]]:
    if form == TFDS:
        yield from rlds.blocks(find_splits(source, game)[pair])
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
