"""The imports of this project as a graph: layers, circles, rooms.

    python -m tests.rooms [DIR]        the exit code is 1 where a rule is broken

The rules (docs/architecture.md): `training` imports nothing of ours, `models` only `training`, a family only these two and
itself, `launch` whatever it likes; and no circle, not even by an import inside a function.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

FAMILIES = ("sgi", "dlc_jax", "rlhf_jax", "kbc_jax")
MAY_IMPORT = {
    "training": {"training"},
    "models": {"training", "models"},
    **{family: {"training", "models", family} for family in FAMILIES},
    "launch": {"training", "models", *FAMILIES, "launch"},
}


def imports(root: Path) -> dict[str, set[str]]:
    """Module name -> the modules of this project that it imports, at the top of the file or inside a function."""
    files = [path for package in MAY_IMPORT for path in (root / package).rglob("*.py")]
    names = {".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path for path in files}
    return {name: set(_imported(ast.parse(path.read_text()), names)) - {name} for name, path in names.items()}


def _imported(tree: ast.AST, names: dict[str, Path]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name for name in inside if name in names)
            if node.module in names and any(name not in names for name in inside):
                yield node.module


def against_the_rule(graph: dict[str, set[str]]) -> list[str]:
    """'importer -> imported' for every import that the layers forbid."""
    package = lambda name: name.partition(".")[0]  # noqa: E731
    pairs = [(a, b) for a, found in sorted(graph.items()) for b in sorted(found)]
    return [f"{a} -> {b}" for a, b in pairs if package(b) not in MAY_IMPORT[package(a)]]


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of two or more nodes each of which imports the others, directly or through others of the group."""
    names = sorted(set(graph) | {b for found in graph.values() for b in found})
    place = {name: i for i, name in enumerate(names)}
    edges = [(place[a], place[b]) for a, found in graph.items() for b in found]
    rows, columns = zip(*edges, strict=True) if edges else ((), ())
    matrix = coo_array(([1] * len(edges), (rows, columns)), shape=(len(names), len(names)))
    _, label = connected_components(matrix, connection="strong")
    groups: dict[int, list[str]] = {}
    for name in names:
        groups.setdefault(int(label[place[name]]), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def rooms(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """The same graph between folders."""
    room = lambda name: name.rpartition(".")[0] or name  # noqa: E731
    found: dict[str, set[str]] = {}
    for a, targets in graph.items():
        found.setdefault(room(a), set()).update(room(b) for b in targets if room(b) != room(a))
    return found


def main(argv: list[str]) -> None:
    root = Path(argv[0]) if argv else Path(__file__).parents[1]
    graph = imports(root)
    for package in MAY_IMPORT:
        inside = {a: {b for b in found if b.startswith(package)} for a, found in graph.items() if a.startswith(package)}
        if inside:
            flat = sum(name.count(".") == 1 for name in inside)
            arrows, between = (sum(map(len, g.values())) for g in (inside, rooms(inside)))
            print(f"{package:10s} {len(inside):3d} files, {flat:2d} on top, {arrows:3d} imports, {between:3d} between rooms")
    found = {"circles": [" <-> ".join(group) for group in circles(graph)], "against the rule": against_the_rule(graph)}
    for title, lines in found.items():
        print(f"{title}: {len(lines)}", *(f"  {line}" for line in lines), sep="\n")
    sys.exit(int(any(found.values())))


if __name__ == "__main__":
    main(sys.argv[1:])
