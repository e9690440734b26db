"""What a pattern matches, and where it has to look."""

from __future__ import annotations

import pytest

from pipeline.corpus.url_pattern import UrlPattern


@pytest.mark.parametrize(
    ("pattern", "root", "deep", "entered", "left"),
    [
        ("b/*.mp4", "b", False, [], ["b/x", "b/x.mp4"]),
        (
            "b/2024-*/clips/*.mp4",
            "b",
            False,
            ["b/2024-01", "b/2024-01/clips"],
            ["b/2023-01", "b/2024-01/x", "b/2024-01/clips/y"],
        ),
        ("b/x/**/*.mp4", "b/x", True, ["b/x/y", "b/x/y/z"], []),
        ("b/[ab]*/**", "b", True, ["b/a", "b/a/any/depth"], ["b/c"]),
        ("b*/v.mp4", "", False, ["b1"], ["c"]),
    ],
)
def test_folders_that_can_hold_a_match_are_entered(
    pattern: str, root: str, deep: bool, entered: list[str], left: list[str]
) -> None:
    made = UrlPattern(pattern)
    assert (made.root, made.deep) == (root, deep)
    assert [folder for folder in (*entered, *left) if made.enters(folder)] == entered


def test_stars_stay_inside_of_a_name_and_two_do_not() -> None:
    assert UrlPattern("b/*/v?.mp4").matches("b/x/v1.mp4")
    assert not UrlPattern("b/*/v?.mp4").matches("b/x/y/v1.mp4")
    assert UrlPattern("b/**/*.mp4").matches("b/v.mp4") and UrlPattern("b/**/*.mp4").matches("b/x/y/v.mp4")
    assert UrlPattern("b/[!a]/v.mp4").matches("b/c/v.mp4") and not UrlPattern("b/[!a]/v.mp4").matches("b/a/v.mp4")


def test_two_stars_beside_letters_mean_nothing() -> None:
    with pytest.raises(ValueError, match="entire path component"):
        UrlPattern("b/a**c/v.mp4")
