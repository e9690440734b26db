from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from pipeline.config import CorpusConfig
from pipeline.corpus.fetch import local, sidecar
from pipeline.corpus.folders import CorpusError, Names
from pipeline.corpus.folders import local_names as streamed
from pipeline.corpus.listing import survey

EXTENSIONS = (".mp4", ".webm")


def local_names(entry: str, names: Names) -> list[str]:
    return list(streamed(entry, names))


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def test_a_folder_that_links_lead_to_is_walked_once(tmp_path: Path) -> None:
    """Two links upwards: before, each video was found once for every path through them, of which there is no end."""
    fill(tmp_path, "a/v.mp4", "b/w.mp4")
    for link in ("a/up", "a/up2", "b/up"):
        (tmp_path / link).symlink_to("..")
    (tmp_path / "again").symlink_to("a")
    (tmp_path / "nowhere").symlink_to("absent")
    names = local_names(str(tmp_path), Names(EXTENSIONS))
    assert len(names) == 2 and {Path(name).name for name in names} == {"v.mp4", "w.mp4"}
    assert names == local_names(str(tmp_path), Names(EXTENSIONS)), "in an order of its own"


def test_a_folder_elsewhere_is_walked_through_its_link(tmp_path: Path) -> None:
    fill(tmp_path, "store/v.mp4")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "link").symlink_to(tmp_path / "store")
    assert local_names(str(tmp_path / "corpus"), Names(EXTENSIONS)) == [str(tmp_path / "corpus/link/v.mp4")]


def test_files_that_do_not_count_are_counted_by_ending(tmp_path: Path) -> None:
    fill(tmp_path, "a.mp4", "a.txt", "a.json", "b.txt", "c.mxf", "d.MXF", "e", ".f.mp4")
    names = Names(EXTENSIONS)
    assert local_names(str(tmp_path), names) == [str(tmp_path / "a.mp4")]
    assert names.left_out == {".mxf": 2, ".txt": 1, "without ending": 1}, "captions beside a video are no files left out"
    notes = survey(CorpusConfig(videos=(str(tmp_path),))).notes
    assert notes == (
        "corpus: 1 videos (1 .mp4)",
        "corpus: left out by their ending: 2 .mxf, 1 .txt, 1 without ending (corpus.extensions)",
    )


def test_a_pattern_takes_what_counts_and_the_ending_that_it_spells_out(tmp_path: Path) -> None:
    fill(tmp_path, "a.mp4", "a.txt", "b.mxf", "sub/c.mp4")
    names = Names(EXTENSIONS)
    assert local_names(f"{tmp_path}/*", names) == [str(tmp_path / "a.mp4")] and names.left_out == {".mxf": 1}
    assert local_names(f"{tmp_path}/*.mxf", Names(EXTENSIONS)) == [str(tmp_path / "b.mxf")]


@pytest.mark.parametrize("ending", [".tar", ".csv", ".mxf"])
def test_a_folder_of_something_else_says_what_to_name(tmp_path: Path, ending: str) -> None:
    fill(tmp_path, f"0{ending}", f"1{ending}")
    with pytest.raises(CorpusError, match=rf"holds 2 \{ending}") as caught:
        survey(CorpusConfig(videos=(str(tmp_path),)))
    mend = "add to corpus.extensions" if ending == ".mxf" else f"name those files: {tmp_path}/**/*{ending}"
    assert mend in str(caught.value)


def test_names_of_another_encoding_are_one_counted_refusal_each(tmp_path: Path) -> None:
    fill(tmp_path, "good.mp4")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.mp4")).write_bytes(b"x")
    listing = survey(CorpusConfig(videos=(str(tmp_path),)))
    assert [(Path(v.source).name, bool(v.fault)) for v in listing.videos] == [(r"caf\xe9.mp4", True), ("good.mp4", False)]
    assert "corpus: 1 videos have a name that is not UTF-8; each is refused as bad_name" in listing.notes


def test_a_deep_pattern_follows_no_links_in_circles(tmp_path: Path) -> None:
    """Three links upwards: Python's glob tries every path through them."""
    fill(tmp_path, "a/v.mp4", "a/b/w.webm", "a/b/.h.mp4", ".hidden/x.mp4", "y.mp4", "a/notes.txt", "c[1]/z.mp4")
    for link in ("a/up", "a/up2", "a/b/up"):
        (tmp_path / link).symlink_to(tmp_path)

    def matched(pattern: str) -> list[str]:
        return [str(Path(name).relative_to(tmp_path)) for name in local_names(f"{tmp_path}/{pattern}", Names(EXTENSIONS))]

    assert matched("**/*.mp4") == ["a/v.mp4", "c[1]/z.mp4", "y.mp4"]
    assert matched("**") == ["a/b/w.webm", "a/v.mp4", "c[1]/z.mp4", "y.mp4"] == matched("**/*")
    assert matched("a/**/w.*") == ["a/b/w.webm"] and matched("*/**/[vw].webm") == ["a/b/w.webm"]
    assert matched("**/[!v]?mp4") == ["c[1]/z.mp4", "y.mp4"] and matched("**/.h*.mp4") == []


@pytest.mark.parametrize("pattern", ["**/*.mp4", "s*b/**/*.mp4", "**/deep/*.mp4", "./**/?.mp4"])
def test_a_deep_pattern_finds_what_glob_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str) -> None:
    import glob

    fill(tmp_path, "sub/a.mp4", "sub/deep/b.mp4", "sob/deep/c.mp4", "d.mp4", "sub/deep/e.webm")
    monkeypatch.chdir(tmp_path)
    wanted = sorted(str(Path(name)) for name in glob.glob(pattern, recursive=True))  # noqa: PTH207
    assert wanted and sorted(str(Path(name)) for name in local_names(pattern, Names(EXTENSIONS))) == wanted


def test_a_caption_file_counts_by_its_stem_however_many_names_are_between() -> None:
    names = [
        "a.json",
        "a.b.mp4",
        "a.b.txt",
        "a.mp4",
        "a.mp4.json",
        "b.json",
        "b.txt",
        "b/.v.json",
        "b/v.txt",
        "bb.json",
        "bb.webm",
    ]
    found = Names(EXTENSIONS)
    assert list(found.counted(sorted(names))) == ["a.b.mp4", "a.mp4", "bb.webm"]
    assert found.left_out == {".json": 2, ".txt": 2}


@pytest.mark.parametrize(
    "entry",
    [
        "zip://**/*.mp4::{}",
        "zip://**/*.mp4::videos.zip",
        "zip://::{}",
        "zip://**::file://{}",
        "simplecache::zip://**/*.mp4::{}",
        "zip://**/*.mp4::simplecache::file://{}",
    ],
)
def test_videos_in_an_archive_are_listed_with_it_and_can_be_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: str
) -> None:
    monkeypatch.chdir(tmp_path)
    archive = tmp_path / "videos.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for name, data in {"a/one.mp4": b"1", "two.mp4": b"2", "two.txt": b"a caption", "left.zip": b"3"}.items():
            file.writestr(name, data)
    found = survey(CorpusConfig(videos=(entry.format(archive),)))
    behind = entry.format(archive).removeprefix("simplecache::").partition("::")[2]
    assert [video.source for video in found.videos] == [f"zip://a/one.mp4::{behind}", f"zip://two.mp4::{behind}"]
    contents = []
    for video in found.videos:
        with local(video.source) as path:
            contents.append(path.read_bytes())
    assert contents == [b"1", b"2"]
    assert [sidecar(video.source) for video in found.videos] == ["", "a caption"]
