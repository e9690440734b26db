"""The rules of the house that can be read off the source: directions, doors, sizes, mirrored tests."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.helpers.mirror import COVERED
from tests.helpers.source_code import PACKAGES, ROOT, imports, module_of, modules, name, room_of, sources, tree

GROUND = ("cluster.config", "cluster.metrics", "cluster.runtime", "cluster.tables")
"""Rooms that every package may import, and that import none of the others."""
FLOORS: dict[str, tuple[tuple[str, ...], ...]] = {
    "tokenizer": (("config", "quantization"), ("network",), ("codec", "evaluation"), ("training",)),
    "pipeline": (
        ("records", "video"),
        ("config", "shards"),
        ("corpus", "analysis", "datasets"),
        ("decoding", "tokenizer_jobs", "books"),
        ("planning", "encoding", "maintenance"),
        ("workers",),
        ("job",),
    ),
    "pretrain": (
        ("attention", "data", "runs"),
        ("model",),
        ("objective",),
        ("engine",),
        ("checkpoint", "estimate"),
        ("sampling",),
        ("loop", "evaluation"),
        ("train",),
    ),
    "cluster": (
        ("config", "metrics", "runtime", "tables", "supported"),
        ("supervise",),
        ("batch",),
        ("hosts",),
        ("launch", "monitor", "monitoring"),
        ("demo",),
        ("cli",),
    ),
}
"""Each package's rooms from the ground up: a room imports rooms below it, never one beside or above it."""
SEES = {
    "tokenizer": (),
    "pipeline": ("tokenizer",),
    "pretrain": ("tokenizer", "pipeline.records", "pipeline.shards", "pipeline.video"),
    "cluster": (),
}
"""What a package may import of the other packages, beside the ground floor. cluster.cli imports all, inside its commands."""
DOORS = {
    "deepspeed": (
        "cluster/runtime/process_group.py",
        "pretrain/engine/engine.py",
        "pretrain/engine/zero3.py",
        "pretrain/checkpoint/deepspeed_io.py",
        "tokenizer/training/engine.py",
    ),
    "ray": ("pipeline/workers/", "pipeline/job/", "cluster/"),
    "prometheus_client": ("cluster/metrics/",),
    "av": ("pipeline/video/",),
}
FILES, LINES, FUNCTION_LINES, PARAMETERS, MODULES = (4, 12), 300, 80, 8, 290


def below(room: str, other: str) -> bool:
    """Whether `room` stands above `other` in its own package, or is the same room."""
    package = room.split(".")[0]
    level = {f"{package}.{each}": floor for floor, rooms in enumerate(FLOORS[package]) for each in rooms}
    return room == other or level.get(other, len(level)) < level.get(room, -1)


def permitted(importer: str, imported: str, *, lazy: bool) -> bool:
    """Whether the module `importer` may import the module `imported`, both of our packages."""
    room, other = room_of(importer), room_of(imported)
    if room in GROUND:
        return other in GROUND or imported == "cluster"
    if other in GROUND:
        return True
    if room == "cluster.cli" and lazy:
        return True
    if room.split(".")[0] == other.split(".")[0]:
        return below(room, other)
    return any(f"{other}.".startswith(f"{seen}.") for seen in SEES[room.split(".")[0]])


def arrows() -> Iterator[tuple[str, str, str, bool]]:
    """Yield (where, importer, imported, lazy) of each import of one of our modules by another."""
    for path in sources():
        own = module_of(path)
        for module, line, lazy in imports(path):
            if module.split(".")[0] in PACKAGES and module != own:
                yield f"{name(path)}:{line}", own, module, lazy


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Return the nodes that can reach themselves."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        ahead = list(graph.get(start, ()))
        while ahead:
            node = ahead.pop()
            if node not in seen:
                seen.add(node)
                ahead += graph.get(node, ())
        return seen

    return sorted(node for node in graph if node in reached(node))


def test_every_room_has_its_floor() -> None:
    known = {f"{package}.{room}" for package, floors in FLOORS.items() for rooms in floors for room in rooms}
    found = {room_of(module) for module in modules() if "." in module}
    assert found == known


def test_rooms_import_only_downwards() -> None:
    wrong = [
        f"{where}: {own} must not import {other}"
        for where, own, other, lazy in arrows()
        if own not in PACKAGES and not permitted(own, other, lazy=lazy)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_modules_and_no_rooms_import_each_other_in_a_circle() -> None:
    between_modules: dict[str, set[str]] = {}
    between_rooms: dict[str, set[str]] = {}
    for _, own, other, _ in arrows():
        if own.count(".") < 2 and (ROOT / own.replace(".", "/")).is_dir():
            continue  # a package's face imports its own modules, which never import it
        between_modules.setdefault(own, set()).add(other)
        if room_of(own) != room_of(other):
            between_rooms.setdefault(room_of(own), set()).add(room_of(other))
    assert not circles(between_modules)
    assert not circles(between_rooms)


def test_heavy_libraries_have_few_doors() -> None:
    wrong = [
        f"{name(path)}:{line}: {module.split('.')[0]} is imported only in {', '.join(doors)}"
        for path in sources()
        for module, line, _ in imports(path)
        if (doors := DOORS.get(module.split(".")[0])) and not name(path).startswith(doors)
    ]
    assert not wrong, "\n".join(wrong)
    assert all((ROOT / door).exists() for doors in DOORS.values() for door in doors)


def test_the_command_line_starts_without_heavy_imports() -> None:
    light = {*sys.stdlib_module_names, "typer"}
    wrong = [
        f"{name(path)}:{line}: import {module} inside the command that needs it"
        for path in sources("cluster")
        if room_of(module_of(path)) == "cluster.cli"
        for module, line, lazy in imports(path)
        if not lazy
        and module.split(".")[0] not in light
        and not module.startswith(("cluster.cli", "cluster.runtime.errors", "cluster.runtime.job_protocol"))
    ]
    assert not wrong, "\n".join(wrong)


def test_rooms_and_files_are_small() -> None:
    wrong = []
    for folder in sorted({path.parent for path in sources()} - {ROOT / package for package in PACKAGES}):
        count = len(list(folder.glob("*.py")))
        if not FILES[0] <= count <= FILES[1]:
            wrong.append(f"{name(folder)}: {count} files, {FILES[0]} to {FILES[1]} are a room")
    for path in sources():
        count = len(path.read_text().splitlines())
        if count > LINES:
            wrong.append(f"{name(path)}: {count} lines, limit {LINES}: split it by noun")
    total = sum(path.name != "__init__.py" for path in sources())
    if total > MODULES:
        wrong.append(f"{total} modules, limit {MODULES}: join what is a fragment")
    assert not wrong, "\n".join(wrong)


def test_functions_are_small() -> None:
    wrong = []
    for path in sources():
        for node in ast.walk(tree(path)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            where, given = f"{name(path)}:{node.lineno}: {node.name}", node.args
            count = len([*given.posonlyargs, *given.args, *given.kwonlyargs]) + bool(given.vararg) + bool(given.kwarg)
            count -= bool(given.args) and given.args[0].arg in ("self", "cls")
            # A command's parameters are its options, as the user types them; a Triton kernel takes each tensor and stride by itself.
            is_kernel = any(ast.unparse(each) == "triton.jit" for each in node.decorator_list)
            if count > PARAMETERS and room_of(module_of(path)) != "cluster.cli" and not is_kernel:
                wrong.append(f"{where} takes {count} parameters, limit {PARAMETERS}: some of them are one thing with a name")
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES:
                wrong.append(f"{where} has {lines} lines, limit {FUNCTION_LINES}")
    assert not wrong, "\n".join(wrong)


def test_every_init_is_a_plan_or_a_face() -> None:
    faces = {"cluster.config", "cluster.metrics", "tokenizer.codec", "pipeline.video"}
    wrong = []
    for path in sources():
        if path.name != "__init__.py":
            continue
        body = [node for node in tree(path).body if not isinstance(node, ast.Expr)]
        if ast.get_docstring(tree(path)) is None:
            wrong.append(f"{name(path)}: a docstring of a few lines says what comes in, what goes out, which file first")
        if body and module_of(path) not in faces and module_of(path) != "cluster":
            wrong.append(f"{name(path)}: only the faces {', '.join(sorted(faces))} hand names on")
    assert not wrong, "\n".join(wrong)


def test_every_module_has_a_mirror_or_a_named_test() -> None:
    wrong = []
    for path in sources():
        if path.name == "__init__.py":
            continue
        mirror = ROOT / "tests" / path.relative_to(ROOT).parent / f"test_{path.name}"
        other = COVERED.get(name(path))
        if mirror.is_file() == (other is not None):
            wrong.append(f"{name(path)}: write {name(mirror)}, or name the test that covers it in tests/helpers/mirror.py")
        if other is not None and not (ROOT / other).is_file():
            wrong.append(f"{name(path)}: tests/helpers/mirror.py names {other}, which is not there")
    stale = [file for file in COVERED if not (ROOT / file).is_file()]
    assert not wrong and not stale, "\n".join([*wrong, *stale])


def test_tests_mirror_the_rooms() -> None:
    rooms = {path.parent.relative_to(ROOT) for path in sources()}
    wrong = [
        name(path)
        for path in (ROOT / "tests").rglob("test_*.py")
        if path.parent.relative_to(ROOT / "tests").as_posix() not in (".", "system", "gpu", "benchmarks")
        and path.parent.relative_to(ROOT / "tests") not in rooms
    ]
    assert not wrong, f"tests that lie beside no room: {wrong}"
    inserted = [
        name(path)
        for path in (ROOT / "tests").rglob("*.py")
        if "sys.path.insert(" in path.read_text() and path != Path(__file__)
    ]
    assert not inserted, f"import tests.helpers instead: {inserted}"


def test_the_rules_catch_what_they_forbid(tmp_path: Path) -> None:
    assert permitted("pretrain.train", "pipeline.records", lazy=False)
    assert not permitted("pretrain.train", "pipeline.encoding.encoder", lazy=False)
    assert permitted("pipeline.job.tokenize", "pipeline.workers.encode_pool", lazy=False)
    assert not permitted("pipeline.workers.encode_pool", "pipeline.job.tokenize", lazy=True)
    assert not permitted("pipeline.planning.planner", "pipeline.encoding.encoder", lazy=False)
    assert not permitted("cluster.runtime.file_lock", "cluster.launch.launcher", lazy=True)
    assert permitted("cluster.cli.data", "pipeline.job.tokenize", lazy=True)
    assert not permitted("cluster.cli.data", "pipeline.job.tokenize", lazy=False)
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c"]
    code = "try:\n    import av\nexcept (OSError, Exception):\n    pass\n\ndef f():\n    from ray import get\n"
    file = tmp_path / "bad.py"
    file.write_text(code)
    assert list(imports(file)) == [("av", 2, False), ("ray", 7, True)]
