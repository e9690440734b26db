import json
from pathlib import Path

import pytest

from cluster.cli import main
from tests.helpers import plans


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return plans.finished(tmp_path / "shards")


def test_verify_counts_a_sound_folder_and_names_damaged_shards(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["shards", "verify", str(shards)]) == 0
    assert capsys.readouterr().out.startswith(
        f"{shards}: sound: 3 shards (0 damaged), 2 of 3 videos used, 7 clips = 6 encoded + 1 "
    )
    path = shards / f"{plans.SHARDS[1]}.tar"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert main.run(["shards", "verify", str(shards)]) == 1
    printed = capsys.readouterr()
    assert ": DAMAGED: 3 shards (1 damaged)" in printed.out and f"damaged: {plans.SHARDS[1]}\n" in printed.err


def test_digest_is_one_line_that_depends_on_the_content(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for _ in range(2):
        assert main.run(["shards", "digest", str(shards)]) == 0
        found.append(capsys.readouterr().out)
    assert len(found[0]) == 65 and found[0] == found[1]
    assert main.run(["shards", "exclude", str(shards), "v/b"]) == 0
    assert capsys.readouterr().out == f"{shards}: 2 samples are now excluded\n"
    assert main.run(["shards", "compact", str(shards)]) == 0
    assert capsys.readouterr().out == f"{shards}: 2 samples removed\n"
    assert main.run(["shards", "digest", str(shards)]) == 0
    assert capsys.readouterr().out != found[0]


def test_stat_prints_tables_or_one_json_object(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["shards", "stat", str(shards), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["buckets"][plans.BUCKET.name]["samples"] == 6
    assert main.run(["shards", "stat", str(shards)]) == 0
    text = capsys.readouterr().out
    assert plans.BUCKET.name in text and f"{found['bits']} bits per token" in text and f"digest {found['digest']}" in text
