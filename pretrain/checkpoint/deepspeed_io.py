"""DOC from pretrain/checkpoint/reader.py."""

from __future__ import annotations

TAG = "zero"
