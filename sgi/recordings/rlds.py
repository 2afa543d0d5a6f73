"""DQN-Replay play from tensorflow-datasets: `rlu_atari_checkpoints` and `rlu_atari_checkpoints_ordered` (RL Unplugged).

    {folder}/{name}/{Game}_run_{run}/{version}        split checkpoint_{i:02d} is checkpoint i (00 to 49; a few games to 48)

A record is an episode: a nested data set of steps (observation PNG [84, 84, 1], action, reward, is_first, is_last, is_terminal,
discount), which is read here without TensorFlow: array_record files through `as_data_source`, and tfrecord files by their
simple framing. Preparing the data set is another matter: that takes TensorFlow, apache-beam and the network
(gs://rl_unplugged), so it is done elsewhere and the folder copied. 46 games; of the Atari-100k games, Private Eye is missing.

Rows as in `sgi.recordings.dqn_replay`: one a step. The last step of an episode is marked terminal, so that no window runs into
the next, whether or not the game was over. RLDS says of it that only its observation counts; no loss reads its action. Rewards
are clipped to [-1, 1] at the source.
An episode is a record that is read whole, so its windows cannot be read at random at a reasonable price: `sgi.formats` makes an
ArrayRecord file of a split, once.
"""

import io
import os
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from sgi.atari.emulator import SIZE, display_name
from training.errors import UserError

NAMES = ("rlu_atari_checkpoints_ordered", "rlu_atari_checkpoints")
PREFIX = "tfds"
KINDS = ("observation", "action", "reward", "terminal")
CHECKPOINTS = 50  # of a run
BLOCK = 1024  # rows decoded at once


class Split(NamedTuple):
    """One checkpoint of one run."""

    builder: object  # tfds.core.DatasetBuilder
    name: str

    def files(self) -> list[Path]:
        return [Path(path) for path in self.builder.info.splits[self.name].filepaths]


def is_tfds(root: str | os.PathLike) -> bool:
    """True for a root that names tensorflow-datasets: 'tfds' or 'tfds:FOLDER'."""
    return str(root).partition(":")[0] == PREFIX


def folder_of(root: str | os.PathLike) -> Path:
    """The folder of 'tfds:folder' or 'folder'; of 'tfds', $TFDS_DATA_DIR or ~/tensorflow_datasets, as there."""
    given = str(root).partition(":")[2] if is_tfds(root) else str(root)
    return Path(given or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def find(root: str | os.PathLike, game: str) -> dict[tuple[int, int], Split]:
    """The prepared checkpoints of a game: {(run, checkpoint): split}."""
    folder, game, splits = folder_of(root), display_name(game), {}
    for name in NAMES:
        for path in sorted(folder.glob(f"{name}/{game}_run_*/*/dataset_info.json")):
            run = path.parts[-3].rpartition("_")[2]
            builder = _builder(name, f"{game}_run_{run}", path.parts[-2], folder)
            for split in builder.info.splits if builder else ():
                if (match := re.fullmatch(r"checkpoint_(\d+)", split)) and builder.info.splits[split].num_examples:
                    splits.setdefault((int(run), int(match[1])), Split(builder, split))
    return splits


def how_to_prepare(root: str | os.PathLike, game: str) -> str:
    """The message for a user whose folder has nothing."""
    game = display_name(game)
    return (
        f"no {NAMES[1]}/{game}_run_1 under {folder_of(root)}: prepare it where TensorFlow, apache-beam and the network are, by "
        f"`tfds build {NAMES[1]} --config {game}_run_1 --file_format array_record`, and give --config.data.dir=tfds:FOLDER"
    )


def blocks(split: Split) -> Iterator[dict[str, np.ndarray]]:
    """Rows of one checkpoint, an episode after another, in blocks of at most BLOCK. Raises UserError for damaged files."""
    try:
        for episode in _episodes(split):
            steps = episode["steps"]
            for begin in range(0, len(steps), BLOCK):
                part = [steps[i] for i in range(begin, min(begin + BLOCK, len(steps)))]
                frames = np.stack([step["observation"] for step in part])
                if frames.shape[1:] != (SIZE, SIZE, 1):
                    raise ValueError(f"observations of shape {frames.shape[1:]}")
                yield {
                    "observation": frames[..., 0],
                    "action": np.array([step["action"] for step in part], np.int32),
                    "reward": np.array([step["reward"] for step in part], np.float32),
                    "terminal": np.arange(begin, begin + len(part)) == len(steps) - 1,
                }
    except UserError:
        raise
    except Exception as error:  # protobuf, PIL and array_record raise errors of any class
        raise UserError(f"cannot read {split.name} of {split.builder.data_path} ({type(error).__name__}: {error})") from error


def prepare(folder: Path, game: str, run: int, checkpoints: Mapping[int, Iterable[dict[str, np.ndarray]]]) -> list[Path]:
    """Write checkpoints of one run, in blocks as of `blocks`, as `rlu_atari_checkpoints_ordered`; returns the files.

    As array_record, without TensorFlow; whole or not at all. Kinds that the data set has no place for are left out. Raises
    UserError for a game, run or checkpoint that it does not know, or if there is one prepared.
    """
    ordered, config = _classes()[NAMES[0]], f"{display_name(game)}_run_{run}"
    if config not in ordered.builder_configs or not all(0 <= i < CHECKPOINTS for i in checkpoints):
        raise UserError(f"{NAMES[0]} has no {config} with checkpoints {sorted(checkpoints)}: 46 games, runs 1-5, 0-49 each")

    class Maker(ordered, skip_registration=True):
        __module__ = "maker"  # else tfds would look for the files of a package
        name = NAMES[0]

        def _split_generators(self, manager):
            return {f"checkpoint_{i:02d}": _examples(i, rows) for i, rows in sorted(checkpoints.items())}

    maker = Maker(config=config, data_dir=str(folder), file_format="array_record")
    if maker.data_path.exists():
        raise UserError(f"{maker.data_path} exists already: give another DESTINATION, or delete it")
    maker.download_and_prepare()
    return sorted(Path(path) for path in maker.data_path.iterdir())


def _examples(checkpoint: int, rows: Iterable[dict[str, np.ndarray]]) -> Iterator[tuple[int, dict]]:
    """The (key, episode) pairs of rows; an episode that the rows leave open is written as it is."""
    steps, number, total = [], 0, 0.0
    for block in rows:
        for frame, action, reward, terminal in zip(*(block[kind] for kind in KINDS), strict=True):
            file = io.BytesIO()
            Image.fromarray(frame).save(file, "PNG")
            steps.append(
                {
                    "observation": file.getvalue(), "action": int(action), "reward": float(reward), "discount": 1.0,
                    "is_first": not steps, "is_last": bool(terminal), "is_terminal": bool(terminal),
                }
            )  # fmt: skip
            total += float(reward)
            if terminal:
                yield _episode(checkpoint, number, steps, total)
                steps, number, total = [], number + 1, 0.0
    if steps:
        yield _episode(checkpoint, number, steps, total)


def _episode(checkpoint: int, number: int, steps: list[dict], total: float) -> tuple[int, dict]:
    episode = {"steps": steps, "checkpoint_id": checkpoint, "episode_id": number, "episode_return": total}
    return checkpoint * 10**10 + number, episode


def _classes():
    """The installed package's own builders, whose features are code of ours to trust."""
    from tensorflow_datasets.rl_unplugged import rlu_atari_checkpoints as shuffled  # takes a second
    from tensorflow_datasets.rl_unplugged import rlu_atari_checkpoints_ordered as ordered

    return dict(zip(NAMES, (ordered.RluAtariCheckpointsOrdered, shuffled.RluAtariCheckpoints), strict=True))


def _builder(name, config, version, folder):
    """The builder of a prepared folder; None for another version than the package's own."""
    known = _classes()[name]
    if version != str(known.VERSION) or config not in known.builder_configs:
        return None
    return known(config=config, data_dir=str(folder))


def _episodes(split: Split) -> Iterator[dict]:
    form = split.builder.info.file_format.value
    if form == "array_record":
        yield from split.builder.as_data_source(split.name)
    elif form == "tfrecord":
        for path in split.files():
            for record in tfrecords(path):
                yield split.builder.info.features.deserialize_example_np(record)
    else:
        raise UserError(f"{split.builder.data_path} is prepared as {form}: prepare it with --file_format array_record")


def tfrecords(path: Path) -> Iterator[bytes]:
    """Records of an uncompressed TFRecord file: length uint64, its checksum, the bytes, their checksum (not compared)."""
    with open(path, "rb") as file:
        while head := file.read(12):
            length = struct.unpack("<Q", head[:8])[0] if len(head) == 12 else -1
            if not 0 <= length <= os.path.getsize(path) - file.tell() - 4:
                raise UserError(f"{path} is damaged or cut short: fetch it again")
            yield file.read(length)
            file.seek(4, os.SEEK_CUR)
