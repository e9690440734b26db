"""Captions to ids and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pretrain.model.config import ModelConfig
from pretrain.model.text_tokenizer import TextError, TextTokenizer


def test_bytes_are_the_ids() -> None:
    tokenizer = TextTokenizer.make(ModelConfig(text_length=16))
    assert tokenizer.vocabulary == 256
    assert bytes(tokenizer.encode("a Hund, ü")) == "a Hund, ü".encode()


def test_a_long_caption_is_cut_between_characters_or_refused() -> None:
    tokenizer = TextTokenizer.make(ModelConfig(text_length=4))
    assert bytes(tokenizer.encode("abcü")).decode() == "abc"
    with pytest.raises(TextError, match=r"model\.text_length 4"):
        tokenizer.encode("abcü", refuse=True)


def test_a_batch_is_padded_right() -> None:
    ids, length = TextTokenizer.make(ModelConfig()).batch(["ab", "", "c"])
    assert ids.tolist() == [[97, 98], [0, 0], [99, 0]]
    assert length.tolist() == [2, 0, 1]
    ids, length = TextTokenizer.make(ModelConfig()).batch([""])
    assert ids.tolist() == [[0]] and length.tolist() == [0]


def test_a_tokenizers_file_is_read(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="the optional package `tokenizers` is not installed")
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "cat": 1, "[UNK]": 2}, unk_token="[UNK]"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    path = tmp_path / "words.json"
    model.save(str(path))
    tokenizer = TextTokenizer.make(ModelConfig(text_tokenizer=path, text_length=3))
    assert tokenizer.vocabulary == 3
    assert tokenizer.encode("a cat") == [0, 1]
    assert tokenizer.encode("a dog cat a a") == [0, 2, 1]


@pytest.mark.parametrize("content", ["no json", json.dumps({"version": 1}), json.dumps([])])
def test_a_file_that_is_no_vocabulary_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(content)
    with pytest.raises(TextError, match=r"broken\.json|package `tokenizers`"):
        TextTokenizer.make(ModelConfig(text_tokenizer=path))
