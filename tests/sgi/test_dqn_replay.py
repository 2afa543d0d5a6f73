"""The DQN Replay layout: bytes on disk, gathering across files, damage, the cache."""

import gzip
import io
import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest

from sgi.recordings.dqn_replay import KINDS, Writer, default_cache, open_store
from training.errors import UserError


def rows(n, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "observation": rng.integers(256, size=(n, 84, 84), dtype=np.uint8),
        "action": rng.integers(18, size=n).astype(np.int32),
        "reward": rng.normal(size=n).astype(np.float32),
        "terminal": (rng.random(n) < 0.3).astype(np.uint8),
    }


def write(root, data, *, run=1, chunk=1000, game="pong", step=3):
    with Writer(root, game, run, chunk) as writer:
        for start in range(0, len(data["action"]), step):
            writer.append(**{kind: array[start : start + step] for kind, array in data.items()})
    return writer.files


def write_published(folder, data, suffix):
    """Files as numpy and gzip write them, with no code of ours."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind, array in data.items():
        buffer = io.BytesIO()
        np.save(buffer, array)
        (folder / suffix.format(kind)).write_bytes(gzip.compress(buffer.getvalue()))


def unpack(path):
    return np.load(io.BytesIO(gzip.decompress(path.read_bytes())))


def test_writer_makes_gzipped_npy_files_of_chunk_rows(tmp_path):
    data = rows(11) | {"ram": np.arange(11 * 128, dtype=np.uint8).reshape(11, 128)}
    files = write(tmp_path, data, run=3, chunk=4, game="ms_pacman")
    folder = tmp_path / "MsPacman" / "3" / "replay_logs"
    names = {f"$store$_{kind}_ckpt.{i}.gz" for kind in data for i in range(3)}
    assert {path.name for path in folder.iterdir()} == names == {path.name for path in files}  # no spool is left
    for kind, array in data.items():
        parts = [unpack(folder / f"$store$_{kind}_ckpt.{i}.gz") for i in range(3)]
        assert [len(part) for part in parts] == [4, 4, 3]
        assert parts[0].dtype == KINDS.get(kind, np.uint8)
        np.testing.assert_array_equal(np.concatenate(parts), array)


def test_writer_is_deterministic_and_drops_a_broken_chunk(tmp_path):
    first, second = (write(tmp_path / name, rows(5), step=step) for name, step in (("a", 2), ("b", 5)))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    with pytest.raises(KeyError), Writer(tmp_path / "c", "pong", 1, 4) as writer:
        writer.append(**rows(5))
        raise KeyError
    assert {path.name.split(".")[1] for path in (tmp_path / "c").rglob("*.gz")} == {"0"}
    assert len(list((tmp_path / "c").rglob("*"))) == 3 + len(KINDS)  # folders and the whole chunk, nothing hidden
    with Writer(tmp_path / "d", "pong", 1) as writer:
        with pytest.raises(ValueError, match="terminal"):
            writer.append(**{kind: array for kind, array in rows(2).items() if kind != "terminal"})
        with pytest.raises(ValueError, match="numbers of rows"):
            writer.append(**rows(2) | {"action": np.zeros(3)})


def test_store_gathers_across_files(tmp_path):
    data = [rows(7, 0), rows(5, 1), rows(6, 2)]
    write_published(tmp_path / "Pong/1/replay_logs", data[0], "$store$_{}_ckpt.5.gz")
    write_published(tmp_path / "Pong/2/replay_logs", data[1], "$store$_{}_ckpt.1.gz")
    write_published(tmp_path / "Pong/1/replay_logs", data[2], "$store$_{}_ckpt.40.gz")
    store = open_store(tmp_path, "pong", [(2, 1), (1, 5), (1, 40)], cache=tmp_path / "cache")
    joined = {kind: np.concatenate([data[i][kind] for i in (1, 0, 2)]) for kind in KINDS}
    assert store.num_frames == 18
    np.testing.assert_array_equal(store.actions, joined["action"])
    np.testing.assert_array_equal(store.terminals, joined["terminal"].astype(bool))
    np.testing.assert_array_equal(store.rewards, joined["reward"])
    expected = [i in (0, 5, 12) or bool(joined["terminal"][i - 1]) for i in range(18)]
    np.testing.assert_array_equal(store.starts, expected)
    index = np.random.default_rng(0).integers(18, size=(4, 3))
    for picked in (index, np.array(17), np.array([5, 6]), np.zeros((0, 2), int)):
        got = store.frames(picked)
        assert got.dtype == np.uint8 and got.shape == (*picked.shape, 84, 84)
        np.testing.assert_array_equal(got, joined["observation"][picked])
    assert open_store(tmp_path, "Pong", cache=tmp_path / "cache").shards[0][:2] == (1, 5)  # 'all' in order of run, checkpoint
    for outside in (-1, 18):
        with pytest.raises(IndexError, match="18"):
            store.frames([0, outside])
    with pytest.raises(UserError, match="ram"):
        store.rows("ram", 0)


def test_extra_channels(tmp_path):
    data = rows(6) | {"ram": np.random.default_rng(0).integers(256, size=(6, 128), dtype=np.uint8)}
    write(tmp_path, data, chunk=4)
    store = open_store(tmp_path, "pong", cache=tmp_path / "cache")
    assert store.channels == ("ram",)
    np.testing.assert_array_equal(store.rows("ram", np.array([[5, 0]])), data["ram"][[[5, 0]]])


def test_flat_layout_of_the_sgi_script(tmp_path):
    """Run 1 has ids of one or two digits; the first checkpoint of run r has id r01."""
    parts = {number: rows(3, number) for number in (1, 25, 301)}
    for number, data in parts.items():
        write_published(tmp_path / "Pong", data, "{}_" + f"{number}.gz")
    store = open_store(tmp_path, "pong", [(3, 1), (1, 25), (1, 1)], cache=tmp_path / "cache")
    np.testing.assert_array_equal(store.frames(np.arange(9)), np.concatenate([parts[i]["observation"] for i in (301, 25, 1)]))


def test_a_file_is_decoded_once_and_never_taken_for_another(tmp_path, capsys):
    cache = tmp_path / "cache"
    for game, seed in (("pong", 0), ("boxing", 1)):
        write(tmp_path, rows(4, seed), game=game)
        np.testing.assert_array_equal(
            open_store(tmp_path, game, cache=cache).frames(np.arange(4)), rows(4, seed)["observation"]
        )
    assert capsys.readouterr().err.count("decoding") == 2
    open_store(tmp_path, "pong", cache=cache)
    assert "decoding" not in capsys.readouterr().err
    write(tmp_path, rows(5, 2), game="pong")
    np.testing.assert_array_equal(open_store(tmp_path, "pong", cache=cache).frames(np.arange(5)), rows(5, 2)["observation"])
    assert all(path.suffix == ".npy" for path in cache.iterdir())  # no half-written file is left
    before = sorted((path.name, path.stat().st_mtime_ns) for path in cache.iterdir())
    open_store(tmp_path, "pong", cache=cache)
    assert sorted((path.name, path.stat().st_mtime_ns) for path in cache.iterdir()) == before


def test_two_processes_may_decode_at_once(tmp_path):
    write(tmp_path, rows(400), step=100)
    code = (
        "import sys; from sgi.recordings.dqn_replay import open_store\n"
        "print(open_store(sys.argv[1], 'pong', cache=sys.argv[2]).frames([399]).sum())"
    )
    command = [sys.executable, "-c", code, str(tmp_path), str(tmp_path / "cache")]
    root = Path(__file__).parents[2]
    processes = [subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    sums = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert sums == [str(rows(400)["observation"][399].sum())] * 2
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_urls(tmp_path, monkeypatch):
    files = fsspec.filesystem("memory")
    for path in write(tmp_path, rows(3)):
        files.pipe(f"/replay/{path.relative_to(tmp_path)}", path.read_bytes())
    store = open_store("memory://replay", "pong", cache=tmp_path / "cache")
    np.testing.assert_array_equal(store.frames([2, 0]), rows(3)["observation"][[2, 0]])
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match="gcsfs"):
        open_store("gs://atari-replay-datasets/dqn", "pong", [(1, 1)])


def damage_file(kind, damage):
    def apply(folder):
        path = folder / f"$store$_{kind}_ckpt.0.gz"
        data = path.read_bytes()
        if damage == "cut":
            path.write_bytes(data[: len(data) // 2])
        elif damage == "flipped":
            path.write_bytes(data[:-6] + bytes([data[-6] ^ 1]) + data[-5:])  # in the checksum's reach
        elif damage == "no gzip":
            path.write_bytes(gzip.decompress(data))
        elif damage == "no npy":
            path.write_bytes(gzip.compress(b"hello" * 100))
        elif damage == "pickle":
            buffer = io.BytesIO()
            np.save(buffer, np.array([{}], dtype=object), allow_pickle=True)
            path.write_bytes(gzip.compress(buffer.getvalue()))
        elif damage == "short":
            write_published(folder, {kind: unpack(path)[:-1]}, "$store$_{}_ckpt.0.gz")
        elif damage == "missing":
            path.unlink()

    return apply


@pytest.mark.parametrize(
    ("kind", "damage", "message"),
    [
        *[
            (kind, damage, f"{kind}_ckpt.0.gz is damaged")
            for kind in ("observation", "action")
            for damage in ("cut", "no gzip", "no npy")
        ],
        ("observation", "flipped", "observation_ckpt.0.gz is damaged"),
        ("terminal", "pickle", "terminal_ckpt.0.gz is damaged"),
        ("terminal", "short", "terminal_ckpt.0.gz has 3 rows, its observation file has 4"),
        ("reward", "short", "reward_ckpt.0.gz has 3 rows"),
        ("action", "missing", "lacks action"),
        ("observation", "missing", "lacks observation"),
    ],
)
def test_damage_is_told_with_the_file(tmp_path, kind, damage, message):
    write(tmp_path, rows(4))
    damage_file(kind, damage)(tmp_path / "Pong/1/replay_logs")
    with pytest.raises(UserError) as caught:
        open_store(tmp_path, "pong", cache=tmp_path / "cache").rewards  # noqa: B018
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.glob("cache/.*"))


def test_what_is_not_there(tmp_path):
    write(tmp_path, rows(4))
    with pytest.raises(UserError, match=r"\(1, 7\).*\(1, 0\)"):
        open_store(tmp_path, "pong", [(1, 7)])
    with pytest.raises(UserError, match="Boxing"):
        open_store(tmp_path, "boxing")
    with pytest.raises(UserError, match="unknown game"):
        open_store(tmp_path, "pingpong")
    with pytest.raises(UserError, match="pairs"):
        open_store(tmp_path, "pong", [])


def test_default_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "quintet" / "frames"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert default_cache() == Path("/home/someone/.cache/quintet/frames")
