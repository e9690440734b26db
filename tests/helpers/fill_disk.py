"""Writes shards into a tmpfs until it is full, then grows it and goes on. Run by test_disk_full.py in a mount namespace."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq

from cluster.runtime.atomic_files import DiskFull
from pipeline.records import Bucket
from pipeline.shards.commit_record import read_info, tar_digest
from pipeline.shards.reader import read_sample
from pipeline.shards.writer import write_shard
from tests.helpers.fakes import FakeCodec, encoded

BIG = Bucket(frames=17, height=64, width=64)


def mount(*options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", sys.argv[1]], check=True)


def main() -> None:
    folder = Path(sys.argv[1])
    mount("size=192k")
    (folder / BIG.name).mkdir()
    whole: dict[str, str] = {}
    message = ""
    for number in range(1000):
        shard = f"{BIG.name}/shard-{number:06d}"
        samples = [encoded(100 * number + i, bucket=BIG) for i in range(24)]
        samples = [replace(sample, clip=replace(sample.clip, shard=shard)) for sample in samples]
        try:
            write_shard(folder, shard, samples, [], FakeCodec.spec)
        except DiskFull as error:
            message = str(error)
            break
        whole[shard] = tar_digest(folder / f"{shard}.tar")
    leftovers = sorted(path.name for path in folder.rglob("*") if path.name.endswith(".tmp"))
    committed = sorted(path.stem for path in folder.rglob("*.parquet"))
    intact = all(
        tar_digest(folder / f"{name}.tar") == digest == read_info(folder / f"{name}.parquet").tar_sha256
        for name, digest in whole.items()
    )
    mount("remount", "size=4m")
    info = write_shard(folder, shard, samples, [], FakeCodec.spec)
    rows = pq.read_table(folder / f"{shard}.parquet").to_pylist()
    read = [read_sample(folder / f"{shard}.tar", row, shard=shard).bits for row in rows]
    wanted = {sample.clip.key: sample.bits for sample in samples}
    print(
        json.dumps(
            {
                "message": message,
                "before": len(whole),
                "committed": len(committed),
                "leftovers": leftovers,
                "intact": intact,
                "after": info.samples,
                "equal": read == [wanted[row["key"]] for row in rows],
            }
        )
    )


if __name__ == "__main__":
    main()
