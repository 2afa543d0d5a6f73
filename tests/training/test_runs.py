"""Runs as things: what a workdir says of itself, files saved with the weights, and what damage does."""

import json
import logging

import numpy as np
import pytest

from training import loop, runs
from training.errors import UserError
from training.runs import Run
from training.sharding import make_mesh
from training.testing import at, make, toy_config, train


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of 12 steps that was left at step 6."""
    folder = tmp_path_factory.mktemp("runs") / "seed-0"
    train(toy_config(mesh__data=1), folder, stop_after=6)
    return folder


def test_a_run_says_what_it_is(workdir):
    run = Run(workdir)
    assert (run.name, run.status, run.finished, run.step, run.steps) == ("seed-0", "stopped", False, 6, [4, 6])
    assert run.config.width == 64 and run.config.is_locked and run.config.workdir == str(workdir)
    assert run.rows()[-1]["step"] == 6
    assert set(run.arrays(only=("params",))) == {"params"} and int(run.arrays(4)["step"]) == 4
    assert run.stream_state() == {"position": 6, "examples": 64} and run.stream_state(4)["position"] == 4
    assert [found.path for found in runs.find(workdir.parent)] == [workdir]
    assert runs.is_run(workdir) and not runs.is_run(workdir.parent)


def test_what_is_not_there_is_one_line(workdir, tmp_path):
    with pytest.raises(UserError, match="no run in"):
        Run(tmp_path)
    with pytest.raises(UserError, match=r"is a run of training.testing, not of sgi.pretrain or sgi.finetune"):
        Run(workdir).needs("sgi.pretrain", "sgi.finetune")
    assert Run(workdir).needs("training.testing").path == workdir
    with pytest.raises(UserError, match=r"no checkpoint of step 5 .*there are \[4, 6\]"):
        Run(workdir).arrays(5)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        _ = Run(tmp_path).config
    assert "not valid JSON" in runs.other_run(toy_config(), tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert Run(tmp_path).status == "unknown" and Run(tmp_path).rows() == []
    (tmp_path / "run.json").write_text("[]")
    assert Run(tmp_path).status == "unknown"
    with pytest.raises(UserError, match="no good checkpoint"):
        _ = Run(tmp_path).step


def test_configs_of_earlier_versions_have_todays_names(workdir, tmp_path):
    saved = json.loads((workdir / "config.json").read_text())
    del saved["sources"]
    saved |= {"init_from": "runs/a", "reward": {"kind": "model", "run": "runs/judge"}}
    (tmp_path / "config.json").write_text(json.dumps(saved))
    config = Run(tmp_path).config
    assert config.sources.to_dict() == {"init": "runs/a", "reward": "runs/judge"} and config.reward.to_dict() == {
        "kind": "model"
    }


def test_a_warm_start_says_what_it_takes(workdir, caplog):
    with caplog.at_level(logging.INFO):
        Run(workdir).announce("Pong", "Boxing")
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == f"weights of step 6 of 12 (stopped), Pong, from {workdir}"
    assert lines[1:] == [f"{workdir} is unfinished: step 6 of 12", f"{workdir} was trained on Pong, this run is on Boxing"]
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING", "WARNING"]


def with_files(folder, contents, **options):
    config, mesh = at(toy_config(mesh__data=1), folder), make_mesh(1)
    method = make(config, mesh)._replace(files=lambda: contents)
    return loop.run(config, method, mesh, str(folder), **options)


def test_files_are_saved_with_the_weights_and_checked(tmp_path):
    contents = {"tokenizer.json": b"{}", "words.txt": "a\nä".encode()}
    with_files(tmp_path, contents, stop_after=2)
    run = Run(tmp_path)
    assert all(run.has_file(name) and run.file(name) == content for name, content in contents.items())
    assert not run.has_file("vocabulary.json")
    with pytest.raises(UserError, match=r"has saved no vocabulary.json; it has tokenizer.json, words.txt"):
        run.file("vocabulary.json")
    with pytest.raises(UserError, match=r"words.txt is not what .* began with"):
        with_files(tmp_path, contents | {"words.txt": b"b"})
    assert Run(tmp_path).file("words.txt") == contents["words.txt"]  # nothing was written over
    assert int(with_files(tmp_path, contents).step) == 12
    (tmp_path / "files" / "words.txt").write_bytes(b"c")
    with pytest.raises(UserError, match=r"words.txt is not what the run saved"):
        Run(tmp_path).file("words.txt")


def test_a_run_without_files_has_none(workdir):
    assert not Run(workdir).has_file("tokenizer.json") and not (workdir / "files").exists()
    np.testing.assert_array_equal(Run(workdir).arrays()["params"]["out"].shape, (64,))
