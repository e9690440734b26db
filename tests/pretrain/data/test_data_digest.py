from __future__ import annotations

from pathlib import Path

from pretrain.data.token_datasets import TokenDatasets
from tests.helpers import made_shards
from tests.pretrain.data.test_token_datasets import BUCKET, CURRICULUM, LARGE


def test_digests_follow_the_tars_and_their_order(tmp_path: Path) -> None:
    """A start reads the list of shards; whatever changes a sample changes the digest of its tar."""
    one = made_shards.make(tmp_path / "one", {BUCKET: 8, LARGE: 4})
    same = made_shards.make(tmp_path / "same", {BUCKET: 8, LARGE: 4})
    more = made_shards.make(tmp_path / "more", {BUCKET: 8, LARGE: 4}, mask=255)
    first, second, third = (TokenDatasets.open([folder], CURRICULUM) for folder in (one, same, more))
    assert first.contents == second.contents and first.digest == second.digest
    assert all(first.contents[name] != third.contents[name] for name in (BUCKET, LARGE)) and first.digest != third.digest
    both, turned = (TokenDatasets.open(folders, CURRICULUM) for folders in ([one, more], [more, one]))
    assert both.contents[BUCKET] != turned.contents[BUCKET] and both.digest != turned.digest
    weighted = TokenDatasets.open([one, more], CURRICULUM, (1.0, 2.0))
    assert weighted.digest != both.digest


def test_a_checkpoint_of_an_earlier_version_is_compared_by_its_own_digests(tmp_path: Path) -> None:
    datasets = TokenDatasets.open([made_shards.make(tmp_path / "one", {BUCKET: 8, LARGE: 4})], CURRICULUM)
    assert datasets.digests_as(datasets.contents) == {}
    (old,) = datasets.digests_as({BUCKET: "0" * 64}).values()
    assert old.keys() == datasets.contents.keys() and all(len(each) == 64 for each in old.values())
