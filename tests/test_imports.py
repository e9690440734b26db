"""The laws of the house that can be read off the source: import directions, one-door rules, sizes, forbidden forms."""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("tokenizer", "pipeline", "pretrain", "cluster")
LEAVES = {"cluster.config", "cluster.config.errors", "cluster.metrics", "cluster.runtime.progress"}
"""Modules that every package may import, and that import none of the others."""
MAY_IMPORT = {
    "tokenizer": {"tokenizer"},
    "pipeline": {"pipeline", "tokenizer"},
    "pretrain": {"pretrain", "tokenizer", "pipeline.shards.writer", "pipeline.index", "pipeline.records", "pipeline.video"},
    "cluster": {"cluster"},
}
DOORS = {
    "deepspeed": ("pretrain/engine/engine.py", "pretrain/checkpoint/reader.py", "tokenizer/training/engine.py"),
    "ray": ("pipeline/ray_*.py", "cluster/*.py"),
    "prometheus_client": ("cluster/metrics.py",),
    "av": ("pipeline/video/*.py",),
}
LINES = 300
LONGER: dict[str, int] = {
    "cluster/demo/run.py": 330,  # six steps in the order in which they run
}
"""Files that may be longer, each with its own limit."""
UNPICKLERS = {
    "tokenizer/evaluation/pretrained.py",
    "tokenizer/codec/image_import.py",  # only the name of pickle's error; it reads through torch.load(weights_only=True)
}
"""Files that may import pickle, to read it with an unpickler that admits a closed list of types."""
CARRIERS = {
    "pipeline/encoding/encoder.py",  # a thread takes any error of its work and raises it in the thread that waits for it
    "pipeline/job/ray_session.py",  # ray.init raises `Exception` itself when its servers do not come up; it becomes a JobError
}
"""Files that may take any error, because they raise it again."""


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def sources(*packages: str) -> list[Path]:
    return sorted(path for package in packages or PACKAGES for path in (ROOT / package).rglob("*.py"))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> Iterator[tuple[str, int, bool]]:
    """Yield (module, line, whether inside a function) of each import; a name taken from a package counts as its module."""
    inside = {
        id(child)
        for function in ast.walk(tree(path))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.walk(function)
    }
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, id(node) in inside
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)}:{node.lineno}: write imports from the package's name, not relative"
            module = node.module or ""
            for alias in node.names:
                full = f"{module}.{alias.name}"
                is_module = (ROOT / full.replace(".", "/")).with_suffix(".py").is_file()
                yield full if is_module else module, node.lineno, id(node) in inside


def allowed(module: str, permitted: set[str]) -> bool:
    parts = module.split(".")
    return any(".".join(parts[:count]) in permitted for count in range(1, len(parts) + 1))


def test_packages_import_only_towards_the_tokenizer() -> None:
    wrong = []
    for path in sources():
        package = path.relative_to(ROOT).parts[0]
        own = name(path).removesuffix(".py").replace("/", ".")
        command_line = package == "cluster" and path.name.startswith("cli")
        permitted = LEAVES if own in LEAVES else MAY_IMPORT[package] | LEAVES
        for module, line, lazy in imports(path):
            if module.split(".")[0] not in PACKAGES or allowed(module, permitted):
                continue
            if command_line and lazy:
                continue
            wrong.append(f"{name(path)}:{line}: {own} must not import {module}")
    assert not wrong, "\n".join(wrong)


def test_heavy_libraries_have_one_door_each() -> None:
    wrong = []
    for path in sources():
        relative = path.relative_to(ROOT)
        for module, line, _ in imports(path):
            library = module.split(".")[0]
            if library in DOORS and not any(relative.match(door) for door in DOORS[library]):
                wrong.append(f"{name(path)}:{line}: {library} is imported only in {', '.join(DOORS[library])}")
    assert not wrong, "\n".join(wrong)


def test_the_command_line_starts_without_heavy_imports() -> None:
    wrong = [
        f"{name(path)}:{line}: import {module} inside the command that needs it"
        for path in sources("cluster")
        if path.name.startswith("cli")
        for module, line, lazy in imports(path)
        if not lazy and module.split(".")[0] not in {*sys.stdlib_module_names, "typer"} and not module.startswith("cluster.cli")
    ]
    assert not wrong, "\n".join(wrong)


def test_files_are_short() -> None:
    wrong = []
    for path in sources():
        count = len(path.read_text().splitlines())
        limit = LONGER.get(name(path), LINES)
        if count > limit:
            wrong.append(f"{name(path)}: {count} lines, limit {limit}: split it by noun")
    assert not wrong, "\n".join(wrong)
    stale = [file for file in LONGER if not (ROOT / file).is_file() or len((ROOT / file).read_text().splitlines()) <= LINES]
    assert not stale, f"files that need no longer limit: {stale}"


def broad(handler: ast.ExceptHandler) -> bool:
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(kind is None or (isinstance(kind, ast.Name) and kind.id in {"Exception", "BaseException"}) for kind in kinds)


def test_no_except_is_broad() -> None:
    wrong = [
        f"{name(path)}:{node.lineno}: name the errors that are expected"
        for path in sources()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ExceptHandler) and broad(node) and name(path) not in CARRIERS
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_is_unpickled() -> None:
    wrong = []
    for path in sources():
        wrong += [
            f"{name(path)}:{line}: {module} runs code from the file it reads"
            for module, line, _ in imports(path)
            if module.split(".")[0] in {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
            and name(path) not in UNPICKLERS
        ]
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {"torch.load", "np.load", "numpy.load"}:
                words = {word.arg: ast.unparse(word.value) for word in node.keywords}
                safe = (
                    words.get("weights_only") == "True"
                    if "torch" in ast.unparse(node.func)
                    else words.get("allow_pickle") != "True"
                )
                if not safe:
                    wrong.append(f"{name(path)}:{node.lineno}: {ast.unparse(node.func)} must not unpickle")
    assert not wrong, "\n".join(wrong)


def test_nothing_is_left_unwritten() -> None:
    wrong = []
    for path in sources():
        wrong += [
            f"{name(path)}:{node.lineno}: NotImplementedError"
            for node in ast.walk(tree(path))
            if isinstance(node, ast.Name) and node.id == "NotImplementedError"
        ]
        wrong += [
            f"{name(path)}:{number}: {word}"
            for number, text in enumerate(path.read_text().splitlines(), start=1)
            for word in ("TODO", "FIXME")
            if word in text
        ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_file_says_what_it_is(package: str) -> None:
    wrong = [name(path) for path in sources(package) if path.read_text().strip() and ast.get_docstring(tree(path)) is None]
    assert not wrong, f"no docstring at the head: {wrong}"


def test_the_rules_catch_what_they_forbid(tmp_path: Path) -> None:
    assert allowed("pipeline.records", MAY_IMPORT["pretrain"]) and allowed("tokenizer.codec", {"tokenizer"})
    assert not allowed("pipeline.encoding.encoder", MAY_IMPORT["pretrain"]) and not allowed("pipeline_x", {"pipeline"})
    code = "try:\n    import av\nexcept (OSError, Exception):\n    pass\n\ndef f():\n    from ray import get\n"
    file = tmp_path / "bad.py"
    file.write_text(code)
    assert list(imports(file)) == [("av", 2, False), ("ray", 7, True)]
    assert [broad(node) for node in ast.walk(tree(file)) if isinstance(node, ast.ExceptHandler)] == [True]
