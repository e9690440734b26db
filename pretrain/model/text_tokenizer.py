"""Captions to token ids: bytes by default, or any Hugging Face `tokenizers` JSON file.

The null token, which replaces an absent caption, is an extra row of the model's embedding and not an id of this vocabulary.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cluster.config.errors import ConfigError
from pretrain.model.config import ModelConfig

PADDING = 0


class TextError(ConfigError):
    """A caption or a tokenizer file that cannot be used; the message names it and how to fix it."""


@dataclass(frozen=True)
class TextTokenizer:
    """Encodes captions."""

    vocabulary: int
    """Number of ids."""
    limit: int
    """Most tokens of a caption."""
    file: Path | None = None
    _model: Any = None

    @classmethod
    def make(cls, config: ModelConfig) -> TextTokenizer:
        """Build the tokenizer that `model.text_tokenizer` names. Raises TextError if its file cannot be read."""
        if config.text_tokenizer == "bytes":
            return cls(vocabulary=256, limit=config.text_length)
        path = Path(config.text_tokenizer)
        try:
            package = importlib.import_module("tokenizers")
        except ImportError as error:
            raise TextError(
                f"model.text_tokenizer: {path} needs the package `tokenizers`; install it or use `bytes`"
            ) from error
        try:
            plain = path.read_text()
            known = json.loads(plain)
        except (OSError, ValueError) as error:
            raise TextError(f"model.text_tokenizer: {path} cannot be read as JSON: {error}") from error
        if not isinstance(known, dict) or "model" not in known:
            raise TextError(f"model.text_tokenizer: {path} has no `model`, so it is not a file of Hugging Face tokenizers")
        model = package.Tokenizer.from_str(plain)
        return cls(vocabulary=int(model.get_vocab_size()), limit=config.text_length, file=path, _model=model)

    def encode(self, text: str, *, refuse: bool = False) -> list[int]:
        """Return the ids of `text`, cut to `limit`; with `refuse` (sampling) a longer text raises TextError instead."""
        ids: list[int] = list(text.encode()) if self._model is None else list(self._model.encode(text).ids)
        if len(ids) > self.limit:
            if refuse:
                raise TextError(
                    f"caption of {len(ids)} tokens is longer than model.text_length {self.limit}: shorten `{text[:40]}...`"
                )
            if self._model is None:
                # Cut between characters: half a character would be bytes that no text has.
                return list(text.encode()[: self.limit].decode(errors="ignore").encode())
            ids = ids[: self.limit]
        return ids

    def batch(self, texts: Sequence[str], *, refuse: bool = False) -> tuple[Tensor, Tensor]:
        """Return ids int64 (B, L), right-padded with 0, L at least 1; and lengths int64 (B)."""
        rows = [self.encode(text, refuse=refuse) for text in texts]
        width = max((len(row) for row in rows), default=0) or 1
        ids = torch.full((len(rows), width), PADDING, dtype=torch.int64)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.tensor(row, dtype=torch.int64)
        return ids, torch.tensor([len(row) for row in rows], dtype=torch.int64)
