"""Formats of recorded play: bit-exact round trips, random access, tensorflow-datasets without TensorFlow, damage."""

import io
import json
import struct
from pathlib import Path

import fsspec
import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from ml_collections import ConfigDict
from PIL import Image
from tensorflow_datasets.rl_unplugged import atari_utils

from sgi import formats
from sgi.formats import convert, main, open_play
from sgi.recordings import arrayrecord, dqn_replay
from sgi.recordings.source import open_data
from sgi.recordings.trajectories import Windows
from tests.sgi.variants import load
from training.errors import UserError


def rows(n, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "observation": rng.integers(256, size=(n, 84, 84), dtype=np.uint8),
        "action": rng.integers(6, size=n).astype(np.int32),
        "reward": rng.normal(size=n).astype(np.float32),
        "terminal": (rng.random(n) < 0.3).astype(np.uint8),
        "ram": rng.integers(256, size=(n, 128), dtype=np.uint8),
        "lives": rng.integers(5, size=n).astype(np.int16),
    }


def write(path, data, step):
    with arrayrecord.Writer(path) as writer:
        for start in range(0, len(data["action"]), step):
            writer.append(**{kind: array[start : start + step] for kind, array in data.items()})


def assert_holds(store, data, index=None):
    index = np.arange(store.num_frames) if index is None else index
    np.testing.assert_array_equal(store.frames(index), data["observation"][index])
    np.testing.assert_array_equal(store.actions, data["action"])
    np.testing.assert_array_equal(store.rewards, data["reward"])
    np.testing.assert_array_equal(store.terminals, data["terminal"].astype(bool))
    assert (store.actions.dtype, store.rewards.dtype, store.terminals.dtype) == (np.int32, np.float32, bool)


@pytest.fixture(scope="module")
def dqn(tmp_path_factory):
    """Runs 1 (checkpoints 3, 4) and 2 (checkpoint 1), and the rows of each."""
    root, data = tmp_path_factory.mktemp("dqn"), {}
    for run, first, n in ((1, 3, 37), (2, 1, 16)):
        made = rows(n, run)
        with dqn_replay.Writer(root, "pong", run, 20, first) as writer:
            writer.append(**made)
        for i in range(-(-n // 20)):
            data[run, first + i] = {kind: array[20 * i : 20 * (i + 1)] for kind, array in made.items()}
    assert sorted(data) == [(1, 3), (1, 4), (2, 1)]
    return root, data


@pytest.fixture(scope="module")
def arrays(dqn, tmp_path_factory):
    root = tmp_path_factory.mktemp("arrays")
    main([str(dqn[0]), str(root), "--game", "pong"])
    return root


def test_round_trip_gives_the_same_bytes(dqn, arrays, tmp_path, capsys):
    main([str(arrays), str(tmp_path), "--game", "Pong"])
    assert len(capsys.readouterr().out.split()) == 3 * 6
    before, after = (
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()} for root in (dqn[0], tmp_path)
    )
    assert before == after and len(before) == 3 * 6


def test_array_records_hold_the_rows(dqn, arrays):
    _, data = dqn
    assert {str(p.relative_to(arrays)) for p in arrays.rglob("*") if p.is_file()} == {
        f"Pong/{run}/arrays_ckpt.{i}.array_record" for run, i in data
    }
    for pairs in ("all", [(2, 1), (1, 3)]):
        store = open_play(arrays, "pong", pairs)
        wanted = [data[pair] for pair in (sorted(data) if pairs == "all" else pairs)]
        joined = {kind: np.concatenate([part[kind] for part in wanted]) for kind in wanted[0]}
        assert_holds(store, joined)
        lengths = np.cumsum([0, *(len(part["action"]) for part in wanted)])
        expected = [i in lengths or bool(joined["terminal"][i - 1]) for i in range(store.num_frames)]
        np.testing.assert_array_equal(store.starts, expected)
        assert store.channels == ("lives", "ram")
        for index in (np.array(0), np.array([[35, 3], [19, 20]]), np.zeros((0, 3), int), np.arange(36)[::-1]):
            for kind in ("observation", "ram", "lives"):
                got = store.rows(kind, index)
                assert got.dtype == joined[kind].dtype and got.shape == (*index.shape, *joined[kind].shape[1:])
                np.testing.assert_array_equal(got, joined[kind][index])
    with pytest.raises(IndexError):
        store.frames([36])
    with pytest.raises(UserError, match=r"\(1, 9\).*\(1, 3\), \(1, 4\), \(2, 1\)"):
        open_play(arrays, "pong", [(1, 9)])


@pytest.mark.parametrize("n", [1, 7, 8, 9, 16])
def test_files_do_not_depend_on_how_rows_came(tmp_path, n):
    for step in (1, 3, 100):
        write(tmp_path / f"{step}", rows(n), step)
    assert len({(tmp_path / f"{step}").read_bytes() for step in (1, 3, 100)}) == 1
    assert_holds(arrayrecord.store([(1, 0, tmp_path / "3")]), rows(n))


def test_windows_decode_only_the_groups_they_show(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write(path, rows(100), 100)
    shard, decoded = arrayrecord.ArrayRecordShard(1, 0, path), []
    monkeypatch.setattr(shard, "_bytes", lambda record, read=shard._bytes: decoded.append(record) or read(record))
    frames = shard.view("observation")
    for _ in range(2):
        np.testing.assert_array_equal(frames[np.arange(38, 51)], rows(100)["observation"][38:51])
    assert decoded == [2 * 4, 2 * 5, 2 * 6]  # observation and ram take turns; a second look decodes nothing


def test_pretraining_reads_all_formats_alike(dqn, arrays, tmp_path):
    data = {"game": "Pong", "shards": "1/3,2/1", "cache": str(tmp_path), "full_action_space": False}
    batches = []
    for root in (dqn[0], arrays):
        windows = Windows(open_data(ConfigDict(data | {"dir": str(root)})), jumps=2, goal_window=9)
        batches.append(windows.batch(np.arange(len(windows)), np.arange(len(windows), dtype=np.uint64)))
    assert len(batches[0]["frames"]) > 10
    for key, array in batches[0].items():
        np.testing.assert_array_equal(array, batches[1][key])


def test_agents_play_is_no_default_for_random_play(tmp_path, monkeypatch):
    """Where no folder is given, $QUINTET_DATA/dqn serves configs that name parts of it."""
    monkeypatch.setenv("QUINTET_DATA", str(tmp_path / "shared"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with dqn_replay.Writer(tmp_path / "shared" / "dqn", "pong", 1, 20, 3) as writer:
        writer.append(**rows(12))
    frames = {}
    for spec, shards in (("random", "all"), ("mixed", "1/3")):
        frames[spec] = open_data(load(f"pretrain:{spec}", data__shards=shards, data__collect=40, data__cache=tmp_path).data)
    assert (frames["random"].num_frames, frames["mixed"].num_frames) == (40, 12)


def test_chosen_shards_and_what_is_refused(dqn, arrays, tmp_path):
    assert [p.name for p in convert(str(dqn[0]), tmp_path, "pong", [(1, 4)])] == ["arrays_ckpt.4.array_record"]
    before = [(p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*")]
    with pytest.raises(UserError, match="Pong exists already"):
        convert(str(dqn[0]), tmp_path, "pong")
    assert [(p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*")] == before
    with pytest.raises(UserError, match=r"lacks.*\(7, 7\)"):
        convert(str(arrays), tmp_path / "x", "pong", [(7, 7)])
    with pytest.raises(UserError, match="no recorded play of Boxing"):
        convert(str(dqn[0]), tmp_path / "x", "boxing")
    with pytest.raises(UserError, match="'hdf5'"):
        convert(str(dqn[0]), tmp_path / "x", "pong", to="hdf5")
    with pytest.raises(UserError, match="--shards is '1-2'"):
        main([str(dqn[0]), str(tmp_path / "x"), "--game", "pong", "--shards", "1-2"])
    assert not (tmp_path / "x").exists()
    with dqn_replay.Writer(tmp_path, "pong", 1) as writer:
        writer.append(**rows(1))
    with pytest.raises(UserError, match="2 formats"):
        open_play(tmp_path, "pong")


def test_urls(dqn, arrays, tmp_path):
    files = fsspec.filesystem("memory")
    for folder, root in (("gz", dqn[0]), ("arrays", arrays)):
        for path in root.rglob("*.*"):
            files.pipe(f"/formats/{folder}/{path.relative_to(root)}", path.read_bytes())
    convert("memory://formats/gz", tmp_path, "pong")
    for path in arrays.rglob("*.array_record"):
        assert (tmp_path / path.relative_to(arrays)).read_bytes() == path.read_bytes()
    with pytest.raises(UserError, match="copy them"):
        open_play("memory://formats/arrays", "pong")


def test_a_conversion_that_fails_leaves_nothing(dqn, tmp_path):
    source = tmp_path / "source"
    for path in dqn[0].rglob("*.gz"):
        target = source / path.relative_to(dqn[0])
        target.parent.mkdir(parents=True, exist_ok=True)
        damaged = "2/replay_logs/$store$_reward" in str(path)  # the last pair
        target.write_bytes(path.read_bytes()[:-9] if damaged else path.read_bytes())
    with pytest.raises(UserError, match=r"reward_ckpt\.1\.gz is damaged"):
        convert(str(source), tmp_path / "made", "pong")
    assert not list((tmp_path / "made").iterdir())
    with pytest.raises(KeyError), arrayrecord.Writer(tmp_path / "made" / "file") as writer:
        writer.append(**rows(9))
        raise KeyError
    assert not list((tmp_path / "made").iterdir())
    with arrayrecord.Writer(tmp_path / "made" / "file") as writer:
        writer.append(**rows(2))
        for wrong in ({"ram": np.zeros((2, 3), np.uint8)}, {"lives": np.zeros(2)}, {"more": np.zeros(2)}):
            with pytest.raises(ValueError, match="after"):
                writer.append(**rows(2) | wrong)
        with pytest.raises(ValueError, match="numbers of rows"):
            writer.append(**rows(2) | {"action": np.zeros(3)})


def rewrite(path, change):
    """The same records under changed contents."""
    records = ArrayRecordReader(str(path)).read_all()
    contents = json.loads(records[-1])
    change(contents, records)
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in [*records[:-1], json.dumps(contents).encode()]:
        writer.write(record)
    writer.close()


def kind(contents, of, **change):
    next(k for k in contents["kinds"] if k["name"] == of).update(change)


@pytest.mark.parametrize(
    "change",
    [
        lambda contents, _: contents.update(format="other"),
        lambda contents, _: contents.update(rows=99),
        lambda contents, _: contents.update(group=0),
        lambda contents, _: contents.pop("kinds"),
        lambda contents, _: kind(contents, "action", dtype="|O8"),
        lambda contents, _: kind(contents, "action", dtype="<i8"),  # more bytes than there are
        lambda contents, _: kind(contents, "action", name="acts"),
        lambda contents, _: kind(contents, "observation", row=[84, 83]),
        lambda _, records: records.pop(0),
        lambda _, records: records.__setitem__(0, records[0][1:]),
    ],
)
def test_wrong_contents_are_told_with_the_file(tmp_path, change):
    path = arrayrecord.file_of(tmp_path, "pong", 1, 0)
    write(path, rows(9), 9)
    rewrite(path, change)
    with pytest.raises(UserError, match=r"arrays_ckpt\.0\.array_record is damaged, cut short or not recorded play") as caught:
        open_play(tmp_path, "pong").frames(np.arange(9))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text"])
def test_damaged_files_are_told(tmp_path, damage):
    path = arrayrecord.file_of(tmp_path, "pong", 1, 0)
    write(path, rows(9), 9)
    data = path.read_bytes()
    middle = len(data) // 8  # among the frames
    changed = {"cut": data[: len(data) // 2], "empty": b"", "text": b"hello" * 99}
    path.write_bytes(changed.get(damage, data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]))
    with pytest.raises(UserError, match=r"arrays_ckpt\.0\.array_record is damaged"):
        open_play(tmp_path, "pong").frames(np.arange(9))


def png(frame):
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "PNG")
    return file.getvalue()


class Maker(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Write a small set under the name, version, configs and features of the real one; TensorFlow is not needed for it."""

    __module__ = "maker"  # tfds would look for the files of a package
    name = "rlu_atari_checkpoints"
    VERSION = tfds.core.Version("1.1.0")
    BUILDER_CONFIGS = tuple(config for config in atari_utils.builder_configs() if config.game == "Pong")

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=atari_utils.features_dict())

    def _split_generators(self, manager):
        return {f"checkpoint_{i:02d}": self._generate_examples(i) for i in (0, 1)}

    def _generate_examples(self, checkpoint):
        data = rows(12, self.builder_config.run)
        for episode, (begin, end) in enumerate([(0, 5), (5, 12)] if checkpoint else [(0, 1)]):
            steps = [
                {
                    "observation": png(data["observation"][t]),
                    "action": data["action"][t],
                    "reward": data["reward"][t],
                    "is_first": t == begin,
                    "is_last": t == end - 1,
                    "is_terminal": episode == 0 and t == end - 1,  # the second one was cut
                    "discount": 1.0,
                }
                for t in range(begin, end)
            ]
            yield f"{episode}", {"steps": steps, "checkpoint_id": checkpoint, "episode_id": episode, "episode_return": 0.0}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Run 2 of Pong, prepared."""
    root = tmp_path_factory.mktemp("tfds")
    Maker(config="Pong_run_2", data_dir=str(root), file_format="array_record").download_and_prepare()
    return root


def assert_is_the_play(store):
    """Episodes come in whichever order; each ends in a terminal row, the one that was cut too."""
    data = rows(12, 2)
    order = np.arange(12) if (store.frames(0) == data["observation"][0]).all() else np.roll(np.arange(12), 7)
    data = {k: v[order] for k, v in data.items()} | {"terminal": np.isin(order, [4, 11])}
    assert_holds(store, data)


def test_tensorflow_datasets_is_converted_once(prepared, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sgi.recordings.rlds.BLOCK", 3)
    assert_is_the_play(open_play(f"tfds:{prepared}", "pong", [(2, 1)], cache=tmp_path))
    assert "converting checkpoint_01" in capsys.readouterr().err
    monkeypatch.setattr("sgi.recordings.rlds.blocks", None)
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    for root in ("tfds", str(prepared)):
        assert_is_the_play(open_play(root, "pong", [(2, 1)], cache=tmp_path))
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(UserError, match=r"\(1, 1\).*\[\(2, 0\), \(2, 1\)\]"):
        open_play(f"tfds:{prepared}", "pong", [(1, 1)])


@pytest.mark.parametrize("to", ["dqn", "arrayrecord"])
def test_tensorflow_datasets_to_files(prepared, tmp_path, to):
    main([f"tfds:{prepared}", str(tmp_path), "--game", "pong", "--shards", "2/1,2/0", "--to", to])
    assert formats.format_of(tmp_path, "pong") == to
    assert_is_the_play(open_play(tmp_path, "pong", [(2, 1)], cache=tmp_path / "cache"))
    assert open_play(tmp_path, "pong", [(2, 0)], cache=tmp_path / "cache").terminals.tolist() == [True]


def test_files_to_tensorflow_datasets_and_back(tmp_path):
    """Two runs, two checkpoints; episodes keep their order, the open one at the end becomes an end."""
    for run, checkpoint, n in ((1, 0, 9), (1, 7, 12), (3, 0, 5)):
        write(arrayrecord.file_of(tmp_path / "a", "pong", run, checkpoint), rows(n, 10 * run + checkpoint), n)
    main([str(tmp_path / "a"), str(tmp_path / "t"), "--game", "pong", "--to", "tfds"])
    main([f"tfds:{tmp_path / 't'}", str(tmp_path / "b"), "--game", "pong", "--to", "arrayrecord"])
    before, after = (open_play(tmp_path / name, "pong") for name in "ab")
    assert before.num_frames == after.num_frames == 26
    np.testing.assert_array_equal(before.frames(np.arange(26)), after.frames(np.arange(26)))
    np.testing.assert_array_equal(before.actions, after.actions)
    np.testing.assert_array_equal(before.rewards, after.rewards)
    ends = before.terminals.copy()
    ends[[8, 20, 25]] = True
    np.testing.assert_array_equal(after.terminals, ends)
    with pytest.raises(UserError, match="exists already"):
        formats.convert(str(tmp_path / "a"), tmp_path / "t", "pong", to="tfds")


def test_what_tensorflow_datasets_has_no_place_for(tmp_path):
    write(arrayrecord.file_of(tmp_path / "a", "pong", 1, 50), rows(5), 5)
    with pytest.raises(UserError, match=r"no Pong_run_1 with checkpoints \[50\]"):
        formats.convert(str(tmp_path / "a"), tmp_path / "t", "pong", to="tfds")
    assert not list((tmp_path / "t").glob("*"))


def as_tfrecord(prepared, root):
    """The same records in TFRecord framing, as the published data set has them."""
    for path in prepared.rglob("*"):
        target = root / str(path.relative_to(prepared)).replace("array_record", "tfrecord")
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        elif "array_record" in path.name:
            records = ArrayRecordReader(str(path)).read_all()
            target.write_bytes(b"".join(struct.pack("<Q4x", len(r)) + r + bytes(4) for r in records))
        else:
            target.write_bytes(path.read_bytes().replace(b"array_record", b"tfrecord"))


def test_tfrecord_files_are_read_without_tensorflow(prepared, tmp_path):
    as_tfrecord(prepared, tmp_path / "tf")
    assert_is_the_play(open_play(f"tfds:{tmp_path / 'tf'}", "pong", [(2, 1)], cache=tmp_path / "cache"))
    path = next((tmp_path / "tf").rglob("*checkpoint_01.tfrecord*"))
    for end in (-5, 14, 7):
        data = path.read_bytes()
        path.write_bytes(data[:end])
        with pytest.raises(UserError, match="tfrecord-00000-of-00001 is damaged"):
            open_play(f"tfds:{tmp_path / 'tf'}", "pong", [(2, 1)], cache=tmp_path / "other")
        path.write_bytes(data)
    broken = bytearray(data)
    broken[data.index(b"IDAT") + 20] ^= 255
    path.write_bytes(broken)
    with pytest.raises(UserError, match="cannot read checkpoint_01"):
        open_play(f"tfds:{tmp_path / 'tf'}", "pong", [(2, 1)], cache=tmp_path / "other")
    assert not list((tmp_path / "other").iterdir())


def test_how_to_prepare_is_told(prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    for root in ("tfds", f"tfds:{tmp_path}"):
        with pytest.raises(UserError, match=r"tfds build .*Boxing_run_1 --file_format"):
            open_play(root, "boxing")
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", "/home/someone")
    assert formats.rlds.folder_of("tfds") == Path("/home/someone/tensorflow_datasets")
