"""Which videos a run plans, without planning them: part files are written as tasks would."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.config import Config, load
from cluster.runtime.atomic_files import write_json
from pipeline.books import index
from pipeline.books.merge import merge
from pipeline.books.parts import read_part, write_part
from pipeline.config import PipelineConfig
from pipeline.corpus.fetch import content_digest
from pipeline.job import generations
from pipeline.records import Reject, SourceVideo, VideoPlan
from pipeline.shards.manifest import Manifest
from pipeline.shards.writer import EncodedClip, write_shard
from tests.helpers.fakes import FakeCodec
from tests.helpers.plans import plan


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "list.csv").write_text("file,caption\n" + "".join(f"v{n}.mp4,caption {n}\n" for n in range(7)))
    (tmp_path / "c.yaml").write_text(f"corpus: {{videos: [{tmp_path}/list.csv]}}\npipeline: {{videos_per_task: 2}}\n")
    (tmp_path / "shards").mkdir()
    return load(tmp_path / "c.yaml")


def planned(manifest: Manifest, number: int, videos: tuple[SourceVideo, ...]) -> None:
    write_part(manifest.part(number), [plan(v.source, [], "") for v in videos])


def test_a_list_that_was_mended_is_read_anew_and_what_is_planned_of_the_rest_is_kept(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = Manifest(tmp_path / "shards")
    begun = generations.begin(config, manifest, retry=False)
    assert begun is not None and [v.caption for v in begun.videos] == [f"caption {n}" for n in range(7)]
    for number in (0, 1, 3):
        planned(manifest, number, begun.videos[2 * number : 2 * number + 2])
    assert generations.begin(config, manifest, retry=False) == begun and manifest.part(1).exists()
    assert f"to begin this plan anew, remove {manifest.parts}" in capsys.readouterr().out

    rows = (tmp_path / "list.csv").read_text().replace("caption 3", "mended")
    (tmp_path / "list.csv").write_text(rows + "v7.mp4,new\n")
    again = generations.begin(config, manifest, retry=False)
    assert again is not None and [v.caption for v in again.videos][3] == "mended" and len(again.videos) == 8
    assert again == manifest.generation()
    assert [manifest.part(n).exists() for n in range(4)] == [True, False, False, False]
    assert "was planned of 2 unchanged videos is kept" in capsys.readouterr().out


def test_parts_of_another_size_are_laid_out_anew(config: Config, tmp_path: Path) -> None:
    manifest = Manifest(tmp_path / "shards")
    begun = generations.begin(config, manifest, retry=False)
    assert begun is not None
    for number in range(4):
        planned(manifest, number, begun.videos[2 * number : 2 * number + 2])
    wider = config.replaced(config.get(PipelineConfig).model_copy(update={"videos_per_task": 3}))
    assert generations.begin(wider, manifest, retry=False) == begun
    names = [read_part(manifest.part(n))["source"].to_pylist() for n in range(3)]
    assert names == [[v.source for v in begun.videos[at : at + 3]] for at in (0, 3, 6)] and not manifest.part(3).exists()


def test_retry_plans_a_changed_file_anew_once_and_tries_a_restored_one_as_planned(config: Config, tmp_path: Path) -> None:
    manifest = Manifest(tmp_path / "shards")
    begun = generations.begin(config, manifest, retry=False)
    assert begun is not None
    files = [Path(v.source) for v in begun.videos]
    for number, path in enumerate(files):
        path.write_bytes(bytes([number]))
    plans = [plan(str(path), [number], content_digest(path)) for number, path in enumerate(files)]
    finish(manifest, plans, changed=2)
    files[0].write_bytes(b"other")  # and file 1 is as it was: it was brought back
    again = generations.begin(config, manifest, retry=True)
    assert again is not None and [v.source for v in again.videos] == [str(files[0])]
    assert [c.source for c in again.clips] == [str(files[1])]
    finish(manifest, [plan(str(files[0]), [8], content_digest(files[0]))], changed=0)
    assert generations.begin(config, manifest, retry=True) is None, "what was planned anew is not planned a third time"


def finish(manifest: Manifest, plans: list[VideoPlan], changed: int) -> None:
    """Merge the plans of the generation that is open, and commit its shards; the first `changed` clips are refused."""
    generation = manifest.generation()
    assert generation is not None
    write_part(manifest.part(0), plans)
    if not (manifest.folder / "dataset.json").exists():
        write_json(
            manifest.folder / "dataset.json",
            {"format": 1, "spec": FakeCodec.spec.plain(), "fps": 8.0, "buckets": [], "features": False},
        )
    merge(manifest, generation, PipelineConfig(clips_per_shard=99, min_free_gb=0), 1)
    for group, (name,), _ in manifest.shards():
        if not manifest.committed([name]):
            clips = manifest.clips(group)
            rejects = [Reject(c.source, "encode", "changed", "", c.begin, c.end, key=c.key) for c in clips[:changed]]
            write_shard(manifest.folder, name, [EncodedClip(c, b"1") for c in clips[changed:]], rejects, FakeCodec.spec)
    index.finish(manifest)
