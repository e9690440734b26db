"""The readers of weight files, which refuse everything but arrays; archives; the command."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from tokenizer.evaluation import fetch
from tokenizer.evaluation.fetch import member, read_arrays
from tokenizer.evaluation.pretrained import WeightsError


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("this must never be printed",))


def test_arrays_are_read_flat() -> None:
    tree = {"a": {"b": np.arange(6, dtype=np.float32).reshape(2, 3)}, "c": np.ones(2)}
    found = read_arrays(pickle.dumps(tree))
    assert set(found) == {"a/b", "c"}
    assert found["a/b"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found["c"].dtype == torch.float32


@pytest.mark.parametrize("content", [Evil(), {"a": Evil()}, {"a": Path("x")}, {"a": np.array([Evil()], dtype=object)}])
def test_anything_but_arrays_is_refused_before_it_is_made(content: object, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(WeightsError, match=r"no array|not arrays"):
        read_arrays(pickle.dumps(content))
    assert "never" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [{"a": 3}, {"a": np.array([1, 2])}, [np.ones(2)]])
def test_trees_of_other_things_are_named(content: object) -> None:
    with pytest.raises(WeightsError, match="not arrays"):
        read_arrays(pickle.dumps(content))


def test_truncated_pickles_are_named() -> None:
    with pytest.raises(WeightsError, match="cannot be read"):
        read_arrays(pickle.dumps({"a": np.ones(100)})[:50])


def test_archive_members_are_read_by_name(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        entry = tarfile.TarInfo("p/w.ckpt")
        entry.size = 3
        tar.addfile(entry, io.BytesIO(b"abc"))
    assert member(archive, "p/w.ckpt") == b"abc"
    with pytest.raises(WeightsError, match="holds no `p/x`"):
        member(archive, "p/x")


def test_the_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert fetch.main(["i3d", "inception"]) == 2
    assert "usage" in capsys.readouterr().err


def test_state_dicts_are_read_and_anything_else_is_not() -> None:
    buffer = io.BytesIO()
    torch.save({"a.weight": torch.ones(2, dtype=torch.float16), "a.count": torch.tensor(3)}, buffer)
    found = fetch.read_state(buffer.getvalue())
    assert set(found) == {"a.weight"} and found["a.weight"].dtype == torch.float32
    for content in (Evil(), [torch.ones(1)], {"a": "text"}):
        buffer = io.BytesIO()
        torch.save(content, buffer)
        with pytest.raises(WeightsError, match=r"cannot be read|something other"):
            fetch.read_state(buffer.getvalue())
    with pytest.raises(WeightsError, match="cannot be read"):
        fetch.read_state(b"nothing of the kind")
