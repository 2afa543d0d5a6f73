"""The entry points as users call them: one line and exit code 2 for a mistake, results for the rest."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from launch import evaluate, quickstart, train
from sgi.recordings.record import Recording, record
from training import config as configs
from training import example, runs, testing
from training.cli import split_overrides
from training.errors import UserError
from training.method import Eval

ROOT = Path(__file__).parents[2]
PRETRAIN, FINETUNE = (f"{ROOT}/configs/sgi/{name}.py" for name in ("pretrain", "finetune"))
LINE = f"{ROOT}/configs/example/line.py"


def command(tmp_path, config, *overrides):
    return ["--config", config, "--workdir", str(tmp_path), "--config.mesh.data=1", *overrides]


@pytest.mark.parametrize(
    ("config", "override", "message"),
    [
        (f"{PRETRAIN}:tiny", "--config.optim.lrate=1", r"unknown config key 'optim\.lrate'; did you mean 'optim\.lr'"),
        (f"{PRETRAIN}:tiny", "--config.steps=soon", "takes int"),
        (f"{PRETRAIN}:huge", "--config.steps=1", "no variant 'huge'"),
        (f"{ROOT}/nothing.py", "--config.steps=1", "no config file"),
        (f"{PRETRAIN}:tiny", "--config.data.dir=/nonexistent", "nonexistent"),
        (f"{PRETRAIN}:tiny", "--config.data.game=Pongg", "did you mean pong"),
        (f"{PRETRAIN}:tiny", "--config.data.shards=7", "write 'all' or run/checkpoint pairs"),
        (f"{PRETRAIN}:tiny", "--config.net.encoder=XL", "encoder is 'XL'"),
        (f"{PRETRAIN}:tiny", "--config.mesh.data=3", "not divisible"),
        (f"{PRETRAIN}:tiny", "--config.mesh.data=64", "needs 64 devices"),
        (f"{FINETUNE}:tiny", "--config.batch=3 --config.mesh.data=2", "not divisible"),
        (f"{FINETUNE}:tiny", "--config.sources.init=/nonexistent", "no run in"),
        (f"{FINETUNE}:sgi", "--config.seed=1", "give --config.sources.init"),
        (f"{FINETUNE}:tiny", "--config.agent.first_layers=both", "choose one of goal, reward, none"),
        (f"{FINETUNE}:tiny", "--config.agent.prefill=3", "take more than n_step and jumps"),
        (f"{PRETRAIN}:tiny", "--config.accumulate=3", "does not split into 3 equal parts"),
        (f"{FINETUNE}:tiny", "--config.population=3 --config.mesh.data=2", "population of 3 seeds is not divisible"),
    ],
)
def test_mistakes_are_named_before_any_training(tmp_path, config, override, message):
    with pytest.raises(UserError, match=message) as caught:
        train.main(command(tmp_path, config, *override.split()))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "checkpoints").exists()


def test_recorded_actions_must_fit_the_action_set(tmp_path):
    record(Recording("pong", 60, envs=1, full_actions=True), tmp_path / "data")
    data = f"--config.data.dir={tmp_path / 'data'}"
    with pytest.raises(UserError, match=r"but Pong has 6: set config\.data\.full_action_space"):
        train.main(command(tmp_path, f"{PRETRAIN}:tiny", data))


def test_quickstart_runs_the_commands_that_it_prints(tmp_path, monkeypatch):
    """Every command of the quickstart parses and names a config with those keys; nothing is trained."""
    commands = []
    monkeypatch.setattr(quickstart, "python_m", lambda module, *args: commands.append((module, [str(a) for a in args])))
    monkeypatch.setattr(quickstart, "compare", lambda out, seed: (out / "pretrain").mkdir(parents=True))
    monkeypatch.setattr(quickstart, "write_report", lambda folders, title: folders[0] / "report.html")
    quickstart.main(["--out", str(tmp_path / "quick")])
    assert [module for module, _ in commands] == ["sgi.collect", "launch.train", "launch.train", "launch.train"]
    for _, args in commands[1:]:
        rest, overrides = split_overrides(args)
        config = configs.load(str(ROOT / rest[rest.index("--config") + 1]), overrides)
        assert config.steps <= 2000


def test_exit_code_and_debug(tmp_path):
    arguments = ["-m", "launch.train", *command(tmp_path, f"{PRETRAIN}:tiny", "--config.stepz=1")]
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: unknown config key 'stepz'; did you mean 'steps'?\n"
    debug = subprocess.run([sys.executable, *arguments, "--debug"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert debug.returncode == 1 and "Traceback" in debug.stderr


def test_train_then_evaluate(tmp_path, capsys):
    train.main(command(tmp_path / "run", f"{FINETUNE}:tiny", "--config.steps=2"))
    capsys.readouterr()
    before = sorted(os.listdir(tmp_path / "run"))
    evaluate.main([str(tmp_path / "run"), "--config.eval.episodes=3", "--out", str(tmp_path / "out")])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["step"] == 2 and result["eval/episodes"] == 3 and "eval/human_normalised" in result
    assert sorted(os.listdir(tmp_path / "run")) == before
    assert list((tmp_path / "out" / "media").glob("*.gif"))
    with pytest.raises(UserError, match="no run in"):
        evaluate.main([str(tmp_path / "nothing")])


def test_a_run_says_first_what_a_row_and_a_step_are(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    train.main(command(tmp_path, f"{LINE}:tiny", "--config.steps=1"))
    said = [message for message in caplog.messages if message.startswith(("training.example", "state on mesh"))]
    assert said[0] == "training.example: batch = points, step = an update" and len(said) == 2


def word_method(today):
    """A method whose network has a unit for each word of a list; a run saves the list, `today[0]` is the one that data have."""

    def words(config):
        own = runs.is_run(config.workdir) and runs.Run(config.workdir).has_file("words")
        return runs.Run(config.workdir).file("words") if own else today[0]

    def make(config, mesh):
        def evaluate(state, consts, step):
            return {"words": len(words(config).split()), "units": state.params["out"].size}

        return example.make(config, mesh)._replace(files=lambda: {"words": words(config)}, evals={"eval": Eval(0, evaluate)})

    module = ModuleType("word_method")
    module.make, module.sizes = make, lambda config: {"width": len(words(config).split())}
    return module


def test_an_evaluation_takes_the_files_of_the_run_itself(tmp_path, capsys, monkeypatch, refusal):
    today = [b"one two three"]
    monkeypatch.setitem(sys.modules, "word_method", word_method(today))
    config = testing.toy_config(method="word_method", width=0, mesh__data=1, steps=1)
    testing.train(config, tmp_path / "first")
    (tmp_path / "first").rename(tmp_path / "run")  # where it lives now counts, and not what its config says
    today[0] = b"a b c d e"
    for workdir, words in (("run", 3), ("other", 5)):
        if workdir == "other":
            testing.train(config, tmp_path / workdir)
        capsys.readouterr()
        evaluate.main([str(tmp_path / workdir)])
        result = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert result == {"step": 1, "eval/words": words, "eval/units": words}
    (tmp_path / "run" / "files" / "words").write_text("one two")
    assert "words is not what the run saved" in refusal(evaluate.main, tmp_path / "run")


def test_evaluating_what_is_no_run_is_one_line(tmp_path, refusal):
    for folder in (tmp_path / "absent", tmp_path):
        assert f"no run in {folder}: {folder}/config.json is missing" in refusal(evaluate.main, folder)
    config = testing.toy_config(mesh__data=1)
    (tmp_path / "config.json").write_text(json.dumps(configs.to_dict(config)))
    assert f"no checkpoint in {tmp_path}; train there first" in refusal(evaluate.main, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_another_config_or_checkpoint_in_the_workdir(tmp_path):
    train.main(command(tmp_path, f"{PRETRAIN}:tiny_bc", "--config.steps=1"))
    with pytest.raises(UserError, match="holds another run"):
        train.main(command(tmp_path, f"{PRETRAIN}:tiny_bc", "--config.steps=1", "--config.batch=16"))
    saved = json.loads((tmp_path / "config.json").read_text())
    saved["net"]["hidden"] = 8  # a config.json edited by hand no longer fits the arrays
    (tmp_path / "config.json").write_text(json.dumps(saved))
    with pytest.raises(UserError, match="does not fit this config"):
        train.main(command(tmp_path, f"{PRETRAIN}:tiny_bc", "--config.steps=2", "--config.net.hidden=8"))
