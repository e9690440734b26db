"""Official archives of UCF-101 and Kinetics, unpacked into DIR/train and DIR/test with captions.

In:  UCF101.rar (or its folder, or a tar or zip of it) and the zip of its split lists; Kinetics' tars and the CSV of its annotations.
Out: the videos as they are, DIR/captions.csv, DIR/dataset.json with the sha256 over names, sizes and captions.

An archive that was unpacked whole is not unpacked again.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from cluster.runtime.atomic_files import write_json
from cluster.runtime.progress import ProgressBar
from pipeline.datasets.clip_folder import DataSetError, begin, finish

_RAR = (("bsdtar", "-xf", "{}", "-C", "{}"), ("unrar", "x", "-o+", "-idq", "{}", "{}/"), ("7z", "x", "-y", "{}", "-o{}"))
"""Programs that unpack rar archives: of Debian's libarchive-tools, unrar, p7zip-rar."""


def ucf101(folder: Path, archive: Path, lists: Path, split: int) -> str:
    """Prepare UCF-101 in `folder` by one of its three official splits; return the digest. Raises DataSetError.

    archive: UCF101.rar, or what it was unpacked to. lists: the zip of trainlist01.txt and so on, or its folder.
    """
    begin(folder, {"name": "ucf101", "split": split})
    listed = {part: _ucf_list(lists, f"{part}list{split:02d}.txt") for part in ("train", "test")}
    videos = {path.name: path for path in _unpacked(archive, folder / "unpacked").rglob("*.avi")}
    wanted = {name: part for part, names in listed.items() for name in names}
    missing = sorted(set(wanted) - set(videos))
    if missing:
        raise DataSetError(
            f"{archive}: {len(missing)} of {len(wanted)} listed videos are missing, such as {missing[0]}: get the archive again"
        )
    captions = {name: re.sub(r"(?<!^)(?=[A-Z])", " ", name.split("_")[1]).lower() for name in wanted}
    return _place(folder, {name: (wanted[name], videos[name], f"a video of {captions[name]}") for name in wanted}, "ucf101")


def kinetics(folder: Path, archives: Sequence[Path], annotations: Path, split: str) -> str:
    """Prepare one split of Kinetics in `folder` (train, or any other as test); return the digest. Raises DataSetError.

    archives: tars of videos ID_START_END.mp4, or folders. annotations: the official CSV (label, youtube_id, time_start, time_end).
    Videos that are listed and not there are left out and counted: the official archives lack some.
    """
    begin(folder, {"name": "kinetics", "split": split})
    try:
        rows = list(csv.DictReader(annotations.read_text(encoding="utf-8").splitlines()))
        labels = {
            f"{row['youtube_id']}_{int(row['time_start']):06d}_{int(row['time_end']):06d}.mp4": row["label"].strip('"')
            for row in rows
        }
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise DataSetError(f"{annotations}: not the annotations of Kinetics ({error}): give its official CSV") from error
    videos: dict[str, Path] = {}
    for archive in archives:
        videos |= {path.name: path for path in _unpacked(archive, folder / "unpacked" / archive.name).rglob("*.mp4")}
    found = {name: videos[name] for name in sorted(labels) if name in videos}
    if not found:
        raise DataSetError(f"{annotations}: none of its {len(labels)} videos is in the archives: is it of the same split?")
    print(f"{len(found)} of {len(labels)} listed videos are there", flush=True)
    part = "train" if split == "train" else "test"
    return _place(folder, {name: (part, path, f"a video of {labels[name]}") for name, path in found.items()}, "kinetics")


def _place(folder: Path, videos: Mapping[str, tuple[str, Path, str]], name: str) -> str:
    """Link videos into their splits, write captions; return the digest."""
    whole, rows = hashlib.sha256(), []
    with ProgressBar(name, len(videos), stderr=True) as progress:
        for file in sorted(videos):
            part, source, caption = videos[file]
            target = folder / part / file
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(source.resolve())
            whole.update(f"{part}/{file}:{source.stat().st_size}:{caption}\n".encode())
            rows.append((f"{part}/{file}", caption))
            progress.update()
    finish(folder, rows, {"name": name, "videos": len(rows), "digest": whole.hexdigest()})
    return whole.hexdigest()


def _unpacked(archive: Path, folder: Path) -> Path:
    """Return the folder that an archive was unpacked to. Raises DataSetError if it is missing, damaged or cannot be unpacked."""
    if archive.is_dir():
        return archive
    if not archive.is_file():
        raise DataSetError(f"{archive}: no such archive; download it from its official page and name its path")
    done = folder / "unpacked.json"
    if done.exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if archive.suffix == ".rar":
            _unrar(archive, folder)
        elif archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as opened:
                opened.extractall(folder)
        else:
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="data")
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise DataSetError(f"{archive}: damaged archive ({error}); download it again") from error
    write_json(done, {"archive": archive.name, "bytes": archive.stat().st_size})
    return folder


def _unrar(archive: Path, folder: Path) -> None:
    for program, *words in _RAR:
        if shutil.which(program) is None:
            continue
        places = iter((str(archive), str(folder)))
        command = [program, *(word.replace("{}", next(places)) if "{}" in word else word for word in words)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
            raise DataSetError(f"{archive}: {program} could not unpack it ({last}); download it again")
        return
    raise DataSetError(
        f"{archive}: no program here unpacks rar; install libarchive-tools (bsdtar), or name the folder it was unpacked to"
    )


def _ucf_list(lists: Path, name: str) -> list[str]:
    """Return the names of videos in one of the official lists."""
    try:
        if lists.is_dir():
            text = next(lists.rglob(name)).read_text()
        else:
            with zipfile.ZipFile(lists) as opened:
                inside = next(each for each in opened.namelist() if each.endswith(f"/{name}") or each == name)
                text = io.TextIOWrapper(opened.open(inside)).read()
    except (OSError, zipfile.BadZipFile, StopIteration) as error:
        raise DataSetError(
            f"{lists}: no {name} there; give UCF101TrainTestSplits-RecognitionTask.zip, or its folder"
        ) from error
    return [line.split()[0].rpartition("/")[2] for line in text.splitlines() if line.strip()]
