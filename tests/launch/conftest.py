"""What the tests of entry points share."""

import sys

import pytest

from training.cli import guarded


@pytest.fixture
def refusal(monkeypatch, capsys):
    """A function (main, *argv) -> the one line on stderr of a command that leaves with exit code 2 and prints no more."""

    def run(main, *argv):
        monkeypatch.setattr(sys, "argv", ["command", *map(str, argv)])
        with pytest.raises(SystemExit) as leaving:
            guarded(main)
        said = capsys.readouterr()
        assert leaving.value.code == 2 and said.out == ""
        assert said.err.startswith("error: ") and said.err.count("\n") == 1
        return said.err

    return run
