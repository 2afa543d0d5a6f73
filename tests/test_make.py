"""`make` opens nothing: every variant of every config is shapes and functions, in under a second, without data or a network."""

import importlib
import sys
import time

import ale_py
import jax
import pytest

from tests.runs import ROOT, path_of, variants
from training import config as configs
from training import loop, population
from training.sharding import make_mesh

CODE = (".py", ".pyc", ".so")
FORBIDDEN = ("open", "os.listdir", "os.scandir", "socket.connect", "socket.getaddrinfo", "subprocess.Popen")
_watching = False


def _hook(event, args):
    """Refuse files, folders, the network and processes, but for imports. It stays for good, so it has a switch."""
    if _watching and event in FORBIDDEN:
        name = str(args[0])
        if not (name.endswith(CODE) if event == "open" else name.startswith((sys.prefix, sys.base_prefix))):
            raise AssertionError(f"make called {event} {name}")


sys.addaudithook(_hook)


@pytest.fixture
def nothing_opens(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise AssertionError("make opened an emulator")

    monkeypatch.delenv("QUINTET_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(ale_py.ALEInterface, "loadROM", refuse)
    monkeypatch.setattr(ale_py.AtariVectorEnv, "__init__", refuse)

    def make(config, mesh):
        global _watching
        _watching = True
        try:
            return population.make(config, mesh)
        finally:
            _watching = False

    return make


@pytest.mark.parametrize("spec", list(variants()))
def test_make_opens_nothing_and_is_quick(nothing_opens, spec):
    config, mesh = configs.load(path_of(spec)), make_mesh(1)
    importlib.import_module(config.method)
    seconds = []
    for _ in range(2):  # the first time may import more
        begin = time.process_time()
        method = nothing_opens(config, mesh)
        seconds.append(time.process_time() - begin)
    assert min(seconds) < 1
    assert all(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves((method.spec, method.consts_spec)))


def test_the_watch_sees_files_and_folders(nothing_opens, tmp_path, monkeypatch):
    (tmp_path / "data.csv").write_text("1")
    for look in (
        lambda *_: (tmp_path / "data.csv").read_text(),
        lambda *_: list(tmp_path.iterdir()),
        lambda *_: ale_py.ALEInterface().loadROM(""),
    ):
        monkeypatch.setattr(population, "make", look)
        with pytest.raises(AssertionError, match=r"make (called|opened)"):
            nothing_opens(None, None)


def test_a_population_is_made_of_shapes_too(nothing_opens):
    config = configs.load(str(ROOT / "configs/example/line.py:tiny"), {"population": "4"})
    mesh = make_mesh(2)
    method = nothing_opens(config, mesh)
    state = loop.abstract_state(config, method, mesh)
    assert state.params["out"].shape == (4, 64) and method.spec["x"].shape == (4, 16, 2)
