"""S3's names in pages: the same as all at once, from any name on, also after an interruption in the middle of one folder."""

from __future__ import annotations

import bisect
import types
from pathlib import Path
from typing import Any

import pytest

from pipeline.corpus import bucket_listing, spilled_names
from pipeline.corpus.spilled_names import Entry, SpilledNames
from pipeline.corpus.store_pages import OutOfOrder, Pages, pages_of

KEYS = sorted(
    ("a.mp4", "a/", "a/1.mp4", "a/2.mp4", "a/b/c.mp4", "a-b.mp4", "a0.mp4", "b/1.mp4", "b/10.mp4", "b/2.mp4", "b//3.mp4", "b//4.mp4", "b///5.mp4",
     "/6.mp4", "z/é.mp4", "z/y x.mp4", "zz.mp4"),
    key=str.encode,
)  # fmt: skip


class Store:
    """A bucket that lists as ListObjectsV2 is documented to, `page` keys at a time."""

    req_kw = types.MappingProxyType({"RequestPayer": "requester"})

    def __init__(self, keys: list[str], page: int, *, fails_at: int = 0) -> None:
        self.keys, self.page, self.fails_at = keys, page, fails_at
        self.asked: list[str] = []
        self.whole = 0

    def call_s3(self, method: str, **request: str) -> dict[str, Any]:
        after = request.get("ContinuationToken", request.get("StartAfter", ""))
        self.asked.append(after)
        if len(self.asked) == self.fails_at:
            raise PermissionError("the keys have expired")
        assert method == "list_objects_v2" and request["Bucket"] == "bucket" and request["RequestPayer"] == "requester"
        prefix, cut = request["Prefix"], request.get("Delimiter")
        found: list[tuple[str, bool]] = []
        for key in self.keys:
            inner, slash, _ = key.removeprefix(prefix).partition("/")
            folder = bool(cut and slash)
            name = f"{prefix}{inner}/" if folder else key
            # A common prefix is listed again unless everything below it comes before the name that was asked for.
            if key.startswith(prefix) and (
                key > after if not folder else key > after and name != request.get("ContinuationToken")
            ):
                found.append((name, folder))
        found = list(dict.fromkeys(found))
        answer: dict[str, Any] = {
            "Contents": [{"Key": name} for name, folder in found[: self.page] if not folder],
            "CommonPrefixes": [{"Prefix": name} for name, folder in found[: self.page] if folder],
        }
        if len(found) > self.page:
            answer |= {"IsTruncated": True, "NextContinuationToken": found[self.page - 1][0]}
        return answer

    def invalidate_cache(self) -> None:
        pass

    def ls(self, folder: str, *, detail: bool) -> list[dict[str, str]]:
        self.whole += 1
        return [
            {"name": name, "type": "directory" if is_folder else "file"} for name, is_folder in flat(self, folder, deep=False)
        ]

    def find(self, folder: str) -> list[str]:
        self.whole += 1
        return [name for name, _ in flat(self, folder, deep=True)]


def flat(store: Store, folder: str, *, deep: bool) -> list[Entry]:
    pages = pages_of(Store(sorted(store.keys), 1000), folder, deep=deep)
    assert pages is not None
    return [entry for page in pages("") for entry in page]


@pytest.mark.parametrize("page", [1, 2, 3, 100])
@pytest.mark.parametrize(
    ("folder", "deep"), [("bucket", True), ("bucket", False), ("bucket/a", False), ("bucket/b", True), ("bucket/b/", False)]
)
def test_pages_of_any_size_hold_the_same_from_any_name_on(page: int, folder: str, deep: bool) -> None:
    pages = pages_of(Store(KEYS, page), folder, deep=deep)
    assert pages is not None
    whole = flat(Store(KEYS, page), folder, deep=deep)
    assert [entry for some in pages("") for entry in some] == whole and len(whole) >= 3
    assert whole == sorted(whole) and not any(name.endswith("/") and not is_folder for name, is_folder in whole)
    for number, (name, is_folder) in enumerate(whole):
        rest = [entry for some in pages(name) for entry in some]
        assert rest == whole[number + 1 - is_folder :], "a folder's name may come again"


@pytest.mark.parametrize("deepest", [1, 4])
@pytest.mark.parametrize("page", [1, 2, 5])
def test_a_listing_that_fails_anywhere_goes_on_after_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: int, deepest: int
) -> None:
    for owner, name, value in (
        (bucket_listing, "CONNECTIONS", 1),
        (bucket_listing, "DEEPEST", deepest),
        (spilled_names, "ROWS", 2),
    ):
        monkeypatch.setattr(owner, name, value)
    calm = Store(KEYS, page)
    whole = list(bucket_listing.find(calm, "bucket"))
    assert whole == [f"bucket/{key}" for key in KEYS if not key.endswith("/")] and not calm.whole
    for fails_at in range(1, len(calm.asked) + 1):
        kept = SpilledNames(tmp_path / f"{fails_at}")
        broken = Store(KEYS, page, fails_at=fails_at)
        with pytest.raises(PermissionError, match="expired"):
            list(bucket_listing.find(broken, "bucket", kept))
        again = Store(KEYS, page)
        assert list(bucket_listing.find(again, "bucket", kept)) == whole
        # What is on disk is not asked for again: two names are a part, and a page may be cut in two by an interruption.
        assert len(again.asked) <= len(calm.asked) - fails_at + 1 + 2 // page + 1


MANY = [f"v{number:05d}.mp4" for number in range(1000)]


@pytest.fixture
def interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SpilledNames:
    """What is on disk of one folder of many names, a hundred a part, when its sixteenth page of fifty is refused."""
    monkeypatch.setattr(spilled_names, "ROWS", 100)
    kept = SpilledNames(tmp_path)
    with pytest.raises(PermissionError):
        list(bucket_listing.find(Store(MANY, 50, fails_at=16), "bucket", kept))
    return kept


def gone_on(kept: SpilledNames) -> list[str]:
    """Go on with the listing, and return after which name each request began."""
    again = Store(MANY, 50)
    assert list(bucket_listing.find(again, "bucket", kept)) == [f"bucket/{key}" for key in MANY]
    return again.asked


def test_one_folder_of_many_names_is_kept_in_parts(interrupted: SpilledNames) -> None:
    kept = interrupted
    assert kept.files == 7, "fifteen pages of fifty are seven parts of a hundred"
    asked = gone_on(kept)
    assert asked[0] == MANY[699] and len(asked) == 6
    kept.forget(bucket_listing.OPENED, "bucket")
    assert not kept.files


def test_a_damaged_part_is_listed_again_with_all_after_it(interrupted: SpilledNames) -> None:
    path = interrupted._file(f"{bucket_listing.OPENED} 2", "bucket")
    path.write_bytes(path.read_bytes()[:-20])
    assert gone_on(interrupted)[0] == MANY[199]


def test_a_store_that_does_not_list_in_order_is_listed_as_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(spilled_names, "ROWS", 2)

    class Disordered(Store):
        def call_s3(self, method: str, **request: str) -> dict[str, Any]:
            answer = super().call_s3(method, **request)
            return {**answer, "Contents": answer["Contents"][::-1]}

    plain = [key for key in KEYS if "//" not in f"/{key}"]  # fsspec's own listing leaves out what is in empty folders
    store, keys = Disordered(plain, 5), [f"bucket/{key}" for key in plain if not key.endswith("/")]
    pages = pages_of(store, "bucket", deep=True)
    assert pages is not None
    with pytest.raises(OutOfOrder):
        list(pages(""))
    assert list(bucket_listing.find(store, "bucket", SpilledNames(tmp_path))) == keys and store.whole


@pytest.mark.parametrize(
    ("folder", "changes"),
    [
        ("bucket--x-s3/a", {}),
        ("arn:aws:s3:us-west-2:123456789012:accesspoint/mine/a", {}),
        ("", {}),
        ("bucket/a", {"call_s3": None}),
        ("bucket/a", {"version_aware": True}),
    ],
)
def test_what_has_no_pages(folder: str, changes: dict[str, Any]) -> None:
    store = Store(KEYS, 5)
    for name, value in changes.items():
        setattr(store, name, value)
    assert pages_of(store, folder, deep=True) is None


def test_where_the_pages_begin_is_a_key() -> None:
    """StartAfter takes a key, without the bucket; a name that is gone serves as well."""
    store = Store(KEYS, 100)
    pages: Pages | None = pages_of(store, "bucket", deep=True)
    assert pages is not None
    assert [name for some in pages("bucket/b/11.mp4") for name, _ in some] == _after("b/11.mp4")
    assert store.asked == ["b/11.mp4"]


def _after(key: str) -> list[str]:
    return [f"bucket/{each}" for each in KEYS[bisect.bisect_right(KEYS, key) :]]
