"""Prompts from a file, prompts that cannot be sampled, and what differs from training."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.records import Bucket
from pretrain.checkpoint.train_state import TrainedStage
from pretrain.model.text_tokenizer import TextTokenizer
from pretrain.sampling.guidance import SampleConfig, SampleError
from pretrain.sampling.request import SampleRequest, differences, read_prompts

TEXT = TextTokenizer(vocabulary=256, limit=12)


def test_a_file_has_one_prompt_a_line(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(b"\xef\xbb\xbfa red ball\r\n\r\n  zwei H\xc3\xbcte\nlast\xe2\x80\xa8line")
    texts, places = read_prompts(file)
    assert texts == ["a red ball", "zwei Hüte", "last\u2028line"]
    assert places == [f"{file}:1", f"{file}:3", f"{file}:4"]


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"\n \n", "no prompt"), (b"caf\xe9\n", "not a text file in UTF-8"), (None, "cannot read the prompts")],
)
def test_a_file_that_holds_none_is_named(tmp_path: Path, content: bytes | None, words: str) -> None:
    file = tmp_path / "prompts.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SampleError, match=rf"prompts\.txt: {words}"):
        read_prompts(file)


def test_a_prompt_that_cannot_be_sampled_is_named() -> None:
    SampleRequest(["a", "", "twelve bytes"]).check(TEXT)
    with pytest.raises(SampleError, match=r"^prompt 2: caption of 13 tokens is longer than model\.text_length 12"):
        SampleRequest(["a", "thirteen byte"]).check(TEXT)
    with pytest.raises(SampleError, match=r"^p\.txt:7: not valid text \(character 2\)"):
        SampleRequest(["a", "b\udce9"], places=["p.txt:1", "p.txt:7"]).check(TEXT)


def test_what_the_weights_were_not_trained_for_is_said() -> None:
    trained = TrainedStage("low", 2, ("f009x32x32", "f001x32x32"), 12.0, "float32", 0.1, (1.0, 5.0, 10.0))
    assert differences(trained, Bucket.parse("f001x32x32"), SampleConfig()) == []
    assert differences(trained, Bucket.parse("f009x32x32"), SampleConfig(fps=12)) == []
    lines = differences(trained, Bucket.parse("f009x64x64"), SampleConfig(fps=8, guidance=(2, 2)))
    assert [line.split(",")[0] for line in lines] == [
        "f009x64x64 was not trained on in stage low", "sample.fps is 8", "guidance (2.0",
    ]  # fmt: skip
