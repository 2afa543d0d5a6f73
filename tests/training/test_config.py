"""Users' mistakes in configs and on the command line."""

import pytest

from training.cli import split_overrides
from training.config import flatten, load, set_value, units
from training.errors import UserError
from training.testing import EXAMPLE, toy_config

CONFIG = (
    "from training.config import base\nVARIANTS = ('a', 'tiny')\ndef get_config(variant='a'):\n    return base('m').lock()\n"
)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(CONFIG)
    return str(path)


def test_overrides_keep_types(file):
    config = load(file, {"steps": "1e3", "mesh.fsdp": "2", "sources.init": "123", "log.tensorboard": "true"})
    assert (config.steps, config.mesh.fsdp, config.sources.init, config.log.tensorboard) == (1000, 2, "123", True)
    config = toy_config().copy_and_resolve_references()
    set_value(config, "optim.lr", "3e-4")
    assert config.optim.lr == 3e-4
    set_value(config, "optim.clip", "None")
    assert config.optim.clip is None


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("stepz", "1", "unknown config key 'stepz'; did you mean 'steps'"),
        ("mesh.fsp", "1", "did you mean 'mesh.fsdp'"),
        ("steps", "many", "takes int .*not 'many'"),
        ("steps", "1.5", "takes int"),
        ("log.tensorboard", "1", "takes bool"),
        ("mesh", "1", "unknown config key 'mesh'"),
    ],
)
def test_wrong_overrides(file, key, text, message):
    with pytest.raises(UserError, match=message):
        load(file, {key: text})


def test_missing_file_and_variant(file, tmp_path):
    with pytest.raises(UserError, match="no config file"):
        load(str(tmp_path / "nothing.py"))
    with pytest.raises(UserError, match="no variant 'b'; it has a, tiny"):
        load(f"{file}:b")
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(UserError, match="no get_config"):
        load(str(tmp_path / "empty.py"))


def test_split_overrides():
    rest, overrides = split_overrides(["--workdir", "w", "--config.a.b=1=2", "--config", "f.py", "--config.c", "3"])
    assert rest == ["--workdir", "w", "--config", "f.py"] and overrides == {"a.b": "1=2", "c": "3"}
    with pytest.raises(UserError, match="needs a value"):
        split_overrides(["--config.c"])


def test_keys_of_earlier_versions_have_todays_names(file):
    assert load(file, {"init_from": "runs/a"}).sources.init == "runs/a"


def test_what_a_batch_and_a_step_are_stands_in_the_docstring():
    assert units(f"{EXAMPLE}:tiny") == "batch = points, step = an update"


def test_flatten():
    assert flatten({"a": {"b": 1}, "c": 2}) == {"a.b": 1, "c": 2}
