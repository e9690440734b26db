"""Spans that an earlier video shows."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.books import merge as module
from pipeline.books.merge import merge
from pipeline.books.parts import write_part
from pipeline.config import DecodeLimits, PipelineConfig
from pipeline.decoding.process import DecoderProcess
from pipeline.planning.planner import plan_video
from pipeline.records import Bucket, SourceVideo
from pipeline.shards.manifest import Manifest
from tests.helpers.near_copies import THRESHOLD, copy
from tests.helpers.plain_merge import Books
from tests.helpers.plans import plan
from tests.pipeline.books.test_merge import add, shuffled


@pytest.mark.parametrize("frames", [5, 17])
def test_near_copies_are_refused_span_by_span_across_generations(clips: Path, tmp_path: Path, frames: int) -> None:
    config = PipelineConfig(buckets=(Bucket(frames=frames, height=32, width=32),), near_dedup=THRESHOLD, min_free_gb=0)
    manifest = Manifest(tmp_path / "shards")
    again = copy(clips / "carphone_pristine.mp4", tmp_path / "again.mp4", skip=0.5)
    barred = copy(clips / "carphone_pristine.mp4", tmp_path / "barred.mp4", bars=(30, 30, 0, 0))
    with DecoderProcess(DecodeLimits()) as decoder:
        for path in (clips / "carphone_pristine.mp4", again, barred, clips / "bigbuckbunny.mp4"):
            generation = manifest.begin_generation([SourceVideo(str(path))])
            write_part(manifest.part(0), [plan_video(SourceVideo(str(path)), config, decoder)])
            merge(manifest, generation, config, 1)
    near = [r for r in manifest.rejects() if r.reason == "near_copy"]
    assert (
        {r.source for r in near} == {str(again), str(barred)}
        and near[0].begin == 0.0
        and near[0].scores["agreement"] >= THRESHOLD
    )
    assert {c.source for g in range(manifest.groups()) for c in manifest.clips(g)} == {
        str(clips / "carphone_pristine.mp4"),
        str(clips / "bigbuckbunny.mp4"),
    }


def test_near_copies_are_those_of_one_loop_over_the_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chains of copies of copies, spans refused and kept in one video, exact copies among them; over generations and many blocks."""
    monkeypatch.setattr(module, "BLOCK_VIDEOS", 8)
    monkeypatch.setattr(module, "PRINT_ROWS", 5)
    for name in ("near_index", "near_copies"):
        monkeypatch.setattr(f"pipeline.books.{name}.BUCKET", 6)
    config = PipelineConfig(clips_per_shard=3, min_free_gb=0, near_dedup=0.9, videos_per_task=3)
    rng = np.random.default_rng(0)
    films = np.cumsum(rng.normal(0, 9, (9, 64, 64)), axis=1) + rng.integers(60, 190, (9, 1, 64))
    generations = []
    for seed in range(2):
        plans = []
        for number in range(18):
            source = f"{seed}-{number}"
            kind = int(rng.integers(9))
            noise = rng.normal(0, 1.5, (64, 64)) * (1 + 2 * (number % 3))
            film = np.clip(np.roll(films[kind], int(rng.integers(3)), axis=0) + noise, 0, 255)
            if number % 4 == 0:  # its second half is another film's
                film[32:] = np.clip(films[(kind + 1) % 9][32:], 0, 255)
            made = plan(source, [0, 4] if number % 2 else [0, 4, 6], digest="" if number % 7 else f"{number % 2:032x}")
            prints = tuple(zlib.compress(one.astype(np.uint8).tobytes()) for one in (film, film[::-1])[: 1 + number % 2])
            plans.append(replace(made, fingerprints=prints))
        generations.append(plans)
    generations[1] += [replace(generations[0][n], fingerprints=generations[1][n].fingerprints) for n in (1, 2, 3)]
    plain, steps = Books(config), []
    for plans in generations:
        plain.merge(plans)
        run = shuffled(len(steps))
        steps.append([0])

        def counted(step: str, *rest: Any, run: Any = run, steps: list[list[int]] = steps) -> Iterator[Any]:
            steps[-1][0] += step == "near index"
            return iter(run(step, *rest))

        manifest = add(tmp_path, plans, config, counted)
        assert [manifest.clips(group) for group in range(manifest.groups())] == plain.groups
        assert manifest.rejects() == plain.rejects
    near = [reject for reject in plain.rejects if reject.reason == "near_copy"]
    assert len(near) > 10 and sum(len(group) for group in plain.groups) > 20 and max(steps)[0] > 2, (
        "copies of copies take rounds"
    )
