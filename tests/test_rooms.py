"""The package's rooms: a module imports from the rooms below its own, never upward, and never in a circle."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "ringnet_ext"

#: From the ground floor up. What stands in the ground is imported by everybody and imports nothing of ours.
GROUND = {"_version", "__config__", "progress"}
ROOMS = [
    "files",
    "ops",
    "geometry",
    "flame",
    "render",
    "detection",
    "network",
    "fitting",
    "data",
    "training",
    "inference",
    "evaluation",
    "commands",
]
#: What imports from a room by its name, for people and for other people's code.
DOORS = {"flame.__main__"}


def modules(package: Path) -> dict[str, ast.Module]:
    found = {}
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        found[name] = ast.parse(file.read_text(), str(file))
    return found


def imports(name: str, is_package: bool, tree: ast.Module, known) -> set[tuple[str, bool]]:
    """The package's modules that a module imports; True where it does so as it is itself imported."""
    found = set()
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", None) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    at_once = {id(node) for node in tree.body}
    here = name.split(".") if is_package and name else name.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                base = here[: len(here) - node.level + 1] + (node.module.split(".") if node.module else [])
            elif (node.module or "").split(".")[0] == "ringnet_ext":
                base = node.module.split(".")[1:]
            else:
                continue
            for alias in node.names:
                whole = ".".join([*base, alias.name])
                target = whole if whole in known else ".".join(base)
                if id(node) not in for_types:
                    found.add((target, id(node) in at_once))
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("ringnet_ext."):
                    found.add((alias.name.removeprefix("ringnet_ext."), id(node) in at_once))
    return found


def complaints(package: Path) -> list[str]:
    trees = modules(package)
    is_package = {name: (package.joinpath(*name.split(".")) / "__init__.py").is_file() for name in trees}
    is_package[""] = True
    graph = {name: imports(name, is_package[name], tree, trees) for name, tree in trees.items()}
    found = []
    for name, targets in graph.items():
        room = name.split(".")[0]
        for target, _ in sorted(targets):
            other = target.split(".")[0]
            if name in DOORS or (room not in ROOMS and room not in GROUND):
                continue  # the package itself, commands' short names, modules for other people's code
            if other in GROUND:
                continue
            if room in GROUND or other not in ROOMS or ROOMS.index(other) > ROOMS.index(room):
                found.append(f"{name} imports {target or 'the package'}, which is above it")

    # Circles of modules that import each other as they are imported.
    at_once = {name: {target for target, now in targets if now and target != name} for name, targets in graph.items()}
    done, path = set(), []

    def visit(name):
        if name in path:
            found.append("circle: " + " -> ".join([*path[path.index(name) :], name]))
        elif name not in done:
            path.append(name)
            for target in sorted(at_once.get(name, ())):
                visit(target)
            path.pop()
            done.add(name)

    for name in at_once:
        visit(name)
    return found


def test_nothing_imports_upward_or_in_a_circle():
    assert complaints(PACKAGE) == []


@pytest.mark.parametrize(
    "file, line, complaint",
    [
        ("files/whole.py", "from ..flame import FLAME", "files.whole imports flame, which is above it"),
        ("geometry/camera.py", "from ringnet_ext.network import RingNet", "geometry.camera imports network, which is"),
        (
            "flame/model.py",
            "def later():\n    from ..commands import train",
            "flame.model imports commands.train, which",
        ),
        ("ops/_checks.py", "from .. import accelerate", "ops._checks imports accelerate, which is above it"),
        ("progress.py", "from .files.whole import written_whole", "progress imports files.whole, which is above it"),
        (
            "flame/landmarks.py",
            "from .model import FlameModel",
            "circle: flame.landmarks -> flame.model -> flame.landm",
        ),
    ],
)
def test_a_planted_import_is_found(tmp_path, file, line, complaint):
    for source in PACKAGE.rglob("*.py"):
        copy = tmp_path / source.relative_to(PACKAGE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(source.read_bytes())
    with open(tmp_path / file, "a") as target:
        target.write(f"\n{line}\n")
    assert any(found.startswith(complaint) for found in complaints(tmp_path)), complaints(tmp_path)
