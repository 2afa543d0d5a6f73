"""Who may import whom, and that the graph which says so sees every import."""

from tests.rooms import against_the_rule, circles, imports

FILES = {
    "training/loop.py": "from models import nets",
    "models/nets.py": "import training.loop",
    "sgi/a.py": "from sgi import b\nfrom training import loop",
    "sgi/b.py": "def late():\n    from sgi.a import x",
    "kbc_jax/c.py": "from sgi.a import x\nimport launch.train",
    "launch/train.py": "from kbc_jax import c",
}


def test_layers_and_circles_are_seen(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    graph = imports(tmp_path)
    assert against_the_rule(graph) == ["kbc_jax.c -> launch.train", "kbc_jax.c -> sgi.a", "training.loop -> models.nets"]
    assert circles(graph) == [["kbc_jax.c", "launch.train"], ["models.nets", "training.loop"], ["sgi.a", "sgi.b"]]


def test_this_project_keeps_its_rules():
    from tests.runs import ROOT

    graph = imports(ROOT)
    assert len(graph) > 100 and against_the_rule(graph) == [] and circles(graph) == []
    # Who wants what a run has trained asks `training.runs`; an evaluation restores onto a mesh, as the loop does.
    readers = {name for name, found in graph.items() if "training.checkpoint" in found}
    assert readers == {"training.loop", "training.runs", "launch.evaluate"}
