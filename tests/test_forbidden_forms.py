"""Forms that the source must not have: broad excepts, bare built-in errors, unpickling, unwritten code, files without a head."""

from __future__ import annotations

import ast
import builtins
from pathlib import Path

import pytest

from tests.helpers.source_code import PACKAGES, imports, name, sources, tree

UNPICKLERS = {
    "tokenizer/evaluation/fetch.py",
    "tokenizer/codec/image_import.py",  # only the name of pickle's error; it reads through torch.load(weights_only=True)
}
"""Files that may import pickle, to read it with an unpickler that admits a closed list of types."""


CARRIERS = {
    "cluster/runtime/file_lock.py",  # closes its file on any error, and raises it again
    "pipeline/decoding/child.py",  # answers its parent with the error, which becomes the refusal of a video
    "pipeline/decoding/containment.py",  # turns an error of the work on one video into its refusal
    "pipeline/encoding/prefetch.py",  # a thread takes any error of its work and raises it in the thread that waits for it
    "pipeline/job/ray_session.py",  # ray.init raises `Exception` itself when its servers do not come up; it becomes a JobError
}
"""Files that may take any error, because they raise it again."""


BUILT_IN = {"ValueError", "RuntimeError", "OSError", "TypeError", "Exception"}


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


def test_errors_for_users_are_classes_of_ours() -> None:
    """A built-in error gets a traceback as a bug does; only a validator of a configuration model raises one, for pydantic."""
    wrong = []
    for path in sources():
        validators = {
            id(child)
            for node in ast.walk(tree(path))
            if isinstance(node, ast.FunctionDef) and any("validator" in ast.unparse(each) for each in node.decorator_list)
            for child in ast.walk(node)
        }
        wrong += [
            f"{name(path)}:{node.lineno}: raise a class of ours"
            for node in ast.walk(tree(path))
            if isinstance(node, ast.Raise)
            and isinstance(node.exc, ast.Call)
            and ast.unparse(node.exc.func) in BUILT_IN
            and id(node) not in validators
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
            for word in ("TODO", "FIXME", "Called by:", "decisions.md", "paper.md")
            if word in text
        ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_file_says_what_it_is(package: str) -> None:
    wrong = [name(path) for path in sources(package) if not (ast.get_docstring(tree(path)) or "").strip()]
    wrong += [name(path) for path in sources(package) if (ast.get_docstring(tree(path)) or "").startswith("DOC ")]
    assert not wrong, f"no docstring at the head: {wrong}"


def test_a_broad_except_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    file.write_text("try:\n    pass\nexcept (OSError, Exception):\n    pass\n")
    assert [broad(node) for node in ast.walk(tree(file)) if isinstance(node, ast.ExceptHandler)] == [True]


def test_triton_kernels_name_only_what_its_compiler_knows() -> None:
    """Triton's compiler reads annotations too, and refuses a global that is neither its own nor a kernel; its interpreter does not."""
    wrong = []
    for path in sources():
        functions = [node for node in tree(path).body if isinstance(node, ast.FunctionDef)]
        kernels = [
            node for node in functions if any(ast.unparse(each).startswith("triton.jit") for each in node.decorator_list)
        ]
        known = {"tl", "range", *dir(builtins), *(node.name for node in kernels)}
        for node in kernels:
            names = [each for each in ast.walk(node) if isinstance(each, ast.Name) and each not in node.decorator_list]
            own = {each.id for each in names if isinstance(each.ctx, ast.Store)} | {each.arg for each in node.args.args}
            used = {each.id for each in names if isinstance(each.ctx, ast.Load)} - {"triton"}
            wrong += [f"{name(path)}:{node.lineno}: {node.name} reads {each}" for each in sorted(used - own - known)]
            annotations = {ast.unparse(arg.annotation) for arg in node.args.args if arg.annotation}
            wrong += [f"{name(path)}:{node.lineno}: {each}" for each in sorted(annotations - {"tl.tensor", "tl.constexpr"})]
    assert not wrong, "\n".join(wrong)
