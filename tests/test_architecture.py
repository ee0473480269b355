"""The layers of the package: no import goes up or in a circle, and no module is too long."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "jaxvae"
MODULES = {
    ".".join(("jaxvae", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
}

# Each may import those before it, and those of its own line.
FLOORS = (
    ("errors", "typing", "keys", "versions", "presets", "own", "memory", "machine", "compilation_cache", "flops"),
    ("options", "protocols"),
    ("noise", "models"),
    ("objectives", "optimizer"),
    ("components", "fields", "config", "config_file"),
    ("data", "distributed", "cli", "flags", "weight_files", "plane"),
    ("run",),
    ("train", "chunks"),
    ("metrics", "trained", "run_images", "walks"),
    ("sweep", "compiled", "export", "explore"),
    ("evaluate", "encode", "generate", "movie", "compare", "benchmark", "torch_weights", "fitting", "data.__main__"),
    ("jaxvae", "__main__", "completion"),
)
MOST_LINES = 380


def floor_of(module: str) -> int:
    name = module.removeprefix("jaxvae.")
    part = name if any(name in parts for parts in FLOORS) else name.split(".")[0]
    return next(number for number, parts in enumerate(FLOORS) if part in parts)


def imports_of(module: str) -> set[str]:
    """The modules of jaxvae that a module imports when it is imported itself, not later within a function."""
    found = set()
    tree = ast.parse(MODULES[module].read_text())
    for node in tree.body:
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("jaxvae"):
            continue
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            found.add(inner if inner in MODULES else str(node.module))
    return found - {module}


@pytest.mark.slow
@pytest.mark.parametrize("module", MODULES)
def test_no_import_runs_upwards(module: str) -> None:
    upwards = [other for other in imports_of(module) if floor_of(other) > floor_of(module)]
    assert upwards == []


def test_no_import_runs_in_a_circle() -> None:
    graph, done, path = {module: imports_of(module) for module in MODULES}, set[str](), list[str]()

    def visit(module: str) -> None:
        assert module not in path, f"a circle: {' -> '.join([*path[path.index(module) :], module])}"
        if module in done:
            return
        path.append(module)
        for other in sorted(graph[module]):
            visit(other)
        path.pop()
        done.add(module)

    for module in sorted(MODULES):
        visit(module)


@pytest.mark.parametrize("module", MODULES)
def test_no_module_is_too_long(module: str) -> None:
    assert len(MODULES[module].read_text().splitlines()) <= MOST_LINES
