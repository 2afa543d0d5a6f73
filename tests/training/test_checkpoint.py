"""Damage of every kind: a checkpoint is verified before it is used, and the last good one is."""

import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from training.checkpoint import Checkpoints, read_arrays
from training.errors import UserError


def state(value: float):
    return {"w": jnp.full((64, 64), value, jnp.float32), "n": jnp.int32(value)}


def target():
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state(0))


@pytest.fixture
def saved(tmp_path):
    """Three checkpoints: 1, 2, 3."""
    checkpoints = Checkpoints(tmp_path, keep_last=3)
    for step in (1, 2, 3):
        checkpoints.save(step, state(step), {"position": step, "bytes": np.arange(step, dtype=np.uint8)}, {"seconds": 1.0})
    checkpoints.close()
    return tmp_path


def restored(workdir):
    return Checkpoints(workdir).restore(target())


def largest_file(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_round_trip(saved):
    result = restored(saved)
    assert result.step == 3 and float(result.state["w"][0, 0]) == 3 and int(result.state["n"]) == 3
    assert result.stream["position"] == 3 and result.meta["seconds"] == 1.0
    np.testing.assert_array_equal(result.stream["bytes"], np.arange(3, dtype=np.uint8))
    assert result.stream["bytes"].dtype == np.uint8


def test_a_given_step_can_be_asked_for(saved):
    assert float(Checkpoints(saved).restore(target(), 2).state["w"][0, 0]) == 2
    with pytest.raises(UserError, match=r"no checkpoint of step 7 .*there are \[1, 2, 3\]"):
        Checkpoints(saved).restore(target(), 7)


DAMAGE = {
    "a flipped byte": lambda folder: flip(largest_file(folder / "state")),
    "a truncated array": lambda folder: largest_file(folder / "state").write_bytes(b"x"),
    "a missing array": lambda folder: largest_file(folder / "state").unlink(),
    "no state": lambda folder: shutil.rmtree(folder / "state"),
    "no stream": lambda folder: shutil.rmtree(folder / "stream"),
    "broken JSON": lambda folder: (folder / "meta" / "metadata").write_text("{"),
    "an empty folder": lambda folder: [shutil.rmtree(p) if p.is_dir() else p.unlink() for p in folder.iterdir()],
}


CASES = [(kind, True) for kind in DAMAGE] + [(kind, False) for kind in DAMAGE if kind != "a flipped byte"]


@pytest.mark.parametrize(("kind", "digested"), CASES)
def test_damage_falls_back_to_the_step_before_and_is_kept_aside(saved, kind, digested):
    """Without a digest (killed between commit and digest) whatever cannot be read counts as damaged; a flip can be read."""
    if not digested:
        (saved / "digests" / "3.json").unlink()
    DAMAGE[kind](saved / "checkpoints" / "3")
    assert restored(saved).step == 2
    assert (saved / "damaged" / "3").is_dir() and not (saved / "checkpoints" / "3").exists()
    again = Checkpoints(saved)
    again.save(3, state(3), {"position": 3}, {"seconds": 2.0})  # the step can be written again
    again.close()
    assert restored(saved).step == 3


def test_everything_damaged_is_an_error(saved):
    for step in "123":
        flip(largest_file(saved / "checkpoints" / step / "state"))
    with pytest.raises(UserError, match=r"no good checkpoint among \[3, 2, 1\]"):
        restored(saved)


def test_the_newest_checkpoint_is_digested_while_the_run_goes_on(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(1), {}, {})
    deadline = time.monotonic() + 20
    while not (tmp_path / "digests" / "1.json").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert (tmp_path / "digests" / "1.json").exists()
    checkpoints.close()


def test_looking_changes_nothing(saved):
    flip(largest_file(saved / "checkpoints" / "3" / "state"))
    with pytest.raises(UserError, match="no good checkpoint among"):
        Checkpoints(saved).restore(target(), 3, set_aside=False)
    assert (saved / "checkpoints" / "3").exists() and not (saved / "damaged").exists()


def test_undigested_checkpoint_is_accepted(saved):
    (saved / "digests" / "3.json").unlink()  # killed between the commit and the digest
    assert restored(saved).step == 3


def test_half_written_save_is_not_a_checkpoint(saved):
    (saved / "checkpoints" / "4.orbax-checkpoint-tmp-1").mkdir()
    assert restored(saved).step == 3


def test_another_shape_names_the_array(saved):
    other = {**target(), "w": jax.ShapeDtypeStruct((8, 8), jnp.float32)}
    with pytest.raises(UserError, match=r"w is \[\[64, 64\], 'float32'\] there and \[\[8, 8\], 'float32'\] here"):
        Checkpoints(saved).restore(other)
    missing = {"w": target()["w"]}
    with pytest.raises(UserError, match=r"n is .* there and nothing here"):
        Checkpoints(saved).restore(missing)


def test_nothing_there(tmp_path):
    assert restored(tmp_path) is None
    with pytest.raises(UserError, match="train there first"):
        read_arrays(str(tmp_path))


def test_branches_without_the_rest(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    extra = {"stats": jnp.zeros(3), "stats_too": jnp.zeros(1)}
    tree = {"params": {"w": jnp.ones(2), "none": {}}, "extra": extra, "n": [jnp.ones(1)]}
    checkpoints.save(1, tree, {}, {})
    checkpoints.close()
    found = read_arrays(str(tmp_path), only=("params", "extra/stats", "nowhere"))
    np.testing.assert_equal(found, {"params": {"w": np.ones(2), "none": {}}, "extra": {"stats": np.zeros(3)}})
    assert read_arrays(str(tmp_path), only=("nowhere",)) == {}


def test_arrays_without_a_target(saved):
    flip(largest_file(saved / "checkpoints" / "3" / "state"))
    arrays = read_arrays(str(saved))
    assert arrays["w"].shape == (64, 64) and arrays["w"][0, 0] == 2 and isinstance(arrays["w"], np.ndarray)
    assert read_arrays(str(saved), 1)["w"][0, 0] == 1
    with pytest.raises(UserError, match=r"checkpoint 3 in .* is damaged"):
        read_arrays(str(saved), 3)
    with pytest.raises(UserError, match=r"no checkpoint of step 9 in .*; there are \[1, 2, 3\]"):
        read_arrays(str(saved), 9)
