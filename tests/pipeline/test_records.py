from __future__ import annotations

import json

import pytest

from pipeline.records import Bucket, BucketError, Clip, Reject, VideoPlan, clip_key, clip_times
from tests.helpers.fakes import clip


def test_a_bucket_and_its_name() -> None:
    bucket = Bucket(frames=17, height=128, width=96)
    assert bucket.name == "f017x128x96" and Bucket.parse(bucket.name) == bucket
    for name in ("f17x128x96", "017x128x96", "f017x128", "f017x128x96.tar"):
        with pytest.raises(BucketError, match="is not a bucket name"):
            Bucket.parse(name)


def test_plans_survive_json() -> None:
    clips = (clip(0, caption="a"), clip(1))
    plan = VideoPlan(
        "a.mp4", "d" * 32, clips, (Reject("a.mp4", "filters", "black", "dark", 2.0, 3.0, {"luma": 1.0}),), (b"\0\xff",)
    )
    assert VideoPlan.parse(json.loads(json.dumps(plan.plain()))) == plan
    assert Clip.parse(json.loads(json.dumps(clips[0].plain()))) == clips[0]


def test_keys_tell_content_span_shape_and_copy_apart() -> None:
    bucket, other = Bucket(frames=5, height=16, width=16), Bucket(frames=5, height=16, width=32)
    keys = [clip_key("d", 0.0, 8.0, bucket), clip_key("e", 0.0, 8.0, bucket), clip_key("d", 0.5, 8.0, bucket)]
    keys += [clip_key("d", 0.0, 4.0, bucket), clip_key("d", 0.0, 8.0, other), clip_key("d", 0.0, 8.0, bucket, 1)]
    assert len(set(keys)) == 6 and {len(key) for key in keys} == {32}
    assert keys[0] == "59d1354738fe62ae75ca1a347cf2cdc9", "keys are part of the format"


def test_times_of_the_frames() -> None:
    assert clip_times(clip(3)) == (3.0, 3.125, 3.25, 3.375, 3.5)
