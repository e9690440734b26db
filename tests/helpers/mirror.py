"""Modules without a test file of their own, each with the test that covers it."""

from __future__ import annotations

CLUSTER: dict[str, str] = {}
TOKENIZER: dict[str, str] = {}
PIPELINE: dict[str, str] = {}
PRETRAIN: dict[str, str] = {}
COVERED = {**CLUSTER, **TOKENIZER, **PIPELINE, **PRETRAIN}
