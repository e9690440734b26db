"""The batch captioner: a tiny random BLIP and a tiny random LLaVA from local folders, and what planning makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.config import CaptionerConfig, DecodeLimits, PipelineConfig
from pipeline.decoding.process import DecoderProcess
from pipeline.planning import captioner as module
from pipeline.planning.captioner import COLUMN, CaptionerError, HuggingFaceCaptioner, folder_digest, load
from pipeline.planning.planner import plan_video
from pipeline.records import Bucket, SourceVideo
from pipeline.shards.schemas import clip_rows, clips_of

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[ENC]", "<image>", "USER:", "a", "man", "car", "bike", "in", "on", "the", "red"]
PLAIN = WORDS.index("a")


def tokenizer(ends: bool = False) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if ends:
        raw.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    named = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "bos_token": "[CLS]"}
    made = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="[SEP]", padding_side="left", **named)
    made.add_special_tokens({"additional_special_tokens": ["<image>"]})
    return made


def talkative(bias: torch.Tensor) -> None:
    """Random weights end at once; words are made likelier than marks."""
    with torch.no_grad():
        bias[:PLAIN] = -1e4


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    marks = {"bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    text = {**size, **marks, "vocab_size": len(WORDS), "encoder_hidden_size": 16, "max_position_embeddings": 32}
    vision = {**size, "image_size": 32, "patch_size": 16}
    torch.manual_seed(0)
    config = BlipConfig(text_config={**text, "initializer_range": 1.0}, vision_config={**vision, "initializer_range": 1.0})
    model = BlipForConditionalGeneration(config)
    talkative(model.text_decoder.cls.predictions.bias)
    folder = tmp_path_factory.mktemp("blip")
    model.save_pretrained(folder)
    BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer(ends=True)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import CLIPImageProcessor, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**size, "model_type": "llama", "vocab_size": len(WORDS), "num_key_value_heads": 2, "initializer_range": 1.0}
    vision = {**size, "model_type": "clip_vision_model", "image_size": 32, "patch_size": 16, "projection_dim": 16}
    torch.manual_seed(0)
    config = LlavaConfig(
        text_config={**text, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3},
        vision_config={**vision, "initializer_range": 1.0},
        image_token_index=WORDS.index("<image>"),
    )
    model = LlavaForConditionalGeneration(config)
    folder = tmp_path_factory.mktemp("llava")
    model.save_pretrained(folder)
    turn = (
        "{% for m in messages %}USER: {% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }} {% endif %}{% endfor %}{% endfor %}"
    )
    LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer=tokenizer(),
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=turn,
        image_token="<image>",
    ).save_pretrained(folder)
    return folder


def spans(count: int, pictures: int = 3) -> list[np.ndarray]:
    return [np.random.default_rng(n).integers(0, 255, (pictures, 40, 60, 3), dtype=np.uint8) for n in range(count)]


def test_a_real_model_of_transformers_captions_a_batch(blip: Path) -> None:
    torch.set_num_threads(1)
    captioner = HuggingFaceCaptioner(CaptionerConfig(weights=blip, max_tokens=6))
    found = captioner.describe(spans(5))
    assert len(found) == 5 and len(set(found)) > 1, "captions depend on the picture"
    assert all(text and set(text.split()) <= set(WORDS[PLAIN:]) and len(text.split()) <= 8 for text in found)
    assert found == captioner.describe(spans(5)), "greedy: the same again"
    prompted = HuggingFaceCaptioner(CaptionerConfig(weights=blip, max_tokens=6, prompt="the red")).describe(spans(2))
    assert all(text.startswith("the red") for text in prompted)


def test_a_chat_model_sees_all_pictures_and_only_its_answer_counts(llava: Path) -> None:
    captioner = HuggingFaceCaptioner(CaptionerConfig(weights=llava, max_tokens=5, frames=3, prompt="in the car"))
    first = captioner.describe(spans(2))
    assert len(first) == 2 and all(0 < len(text.split()) <= 5 for text in first), "the question is left out"
    changed = spans(2)
    changed[0][2] = 255 - changed[0][2]
    other = captioner.describe(changed)
    assert other[1] == first[1] and other[0] != first[0], "the last picture counts too"


def test_the_digest_follows_the_files(blip: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode())
    first = folder_digest(tmp_path)
    assert len(first) == 32 and first == folder_digest(tmp_path) != folder_digest(blip)
    (tmp_path / "b").write_bytes(b"c")
    assert folder_digest(tmp_path) != first


@pytest.mark.parametrize("content", ["absent", "empty", "no model", "pickle"])
def test_folders_that_hold_no_usable_model(blip: Path, tmp_path: Path, content: str) -> None:
    folder = tmp_path / "model"
    if content != "absent":
        folder.mkdir()
    if content == "no model":
        (folder / "config.json").write_text("{}")
    if content == "pickle":  # the same model, but as a pickle: it is not read
        for path in blip.iterdir():
            if path.suffix == ".json":
                (folder / path.name).write_bytes(path.read_bytes())
        torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(CaptionerError, match="model") as caught:
        HuggingFaceCaptioner(CaptionerConfig(weights=folder))
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


class Counting:
    digest = "d" * 32

    def __init__(self) -> None:
        self.batches: list[int] = []

    def describe(self, spans: Sequence[np.ndarray]) -> list[str]:
        self.batches.append(len(spans))
        return [f"{span.shape[0]} pictures of {span.shape[1]}x{span.shape[2]}" for span in spans]


BUCKETS = (Bucket(frames=1, height=32, width=32), Bucket(frames=5, height=32, width=32))


def test_planning_captions_what_has_none(clips: Path, blip: Path, tmp_path: Path) -> None:
    video = tmp_path / "carphone_pristine.mp4"
    video.symlink_to(clips / "carphone_pristine.mp4")
    config = PipelineConfig(buckets=BUCKETS, captioner=CaptionerConfig(weights=blip, batch=4, frames=2, side=48, max_tokens=6))
    counting = Counting()
    with DecoderProcess(DecodeLimits()) as decoder:
        plan = plan_video(SourceVideo(str(video), extra={"licence": "CC0"}), config, decoder, counting)
        begins = {clip.begin for clip in plan.clips}
        assert sum(counting.batches) == len(begins) and set(counting.batches[:-1]) == {4}, "each span once, in batches"
        assert {clip.caption for clip in plan.clips} == {"2 pictures of 48x64"}
        assert all(clip.extra == {"licence": "CC0", COLUMN: counting.digest} for clip in plan.clips)
        assert clips_of(clip_rows(plan.clips, 0)) == list(plan.clips)
        counting.batches.clear()
        known = plan_video(SourceVideo(str(video), "a race"), config, decoder, counting)
        assert not counting.batches and {(c.caption, tuple(c.extra)) for c in known.clips} == {("a race", ())}
        real = plan_video(SourceVideo(str(video)), config, decoder, load(config.captioner.model_dump_json()))
        assert all(clip.caption and clip.extra[COLUMN] == folder_digest(blip) for clip in real.clips)
        assert load(config.captioner.model_dump_json()) is load(config.captioner.model_dump_json()), "once a process"


def test_a_decoder_that_dies_once_costs_no_caption(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = PipelineConfig(buckets=BUCKETS, captioner=CaptionerConfig(batch=3))
    with DecoderProcess(DecodeLimits()) as decoder:
        calm = plan_video(SourceVideo(str(clips / "carphone_pristine.mp4")), config, decoder, Counting())
        read = decoder.read

        def dying(*args: Any) -> Any:
            for number, frames in enumerate(read(*args)):
                if number == 4 and not decoder.deaths:
                    decoder.deaths += 1
                    raise module.DecoderDied("killed", "made up")
                yield frames

        monkeypatch.setattr(decoder, "read", dying)
        assert (
            plan_video(SourceVideo(str(clips / "carphone_pristine.mp4")), config, decoder, Counting()) == calm
            and decoder.deaths
        )


def test_captioning_leaves_the_decoding_child_alive(clips: Path) -> None:
    config = PipelineConfig(buckets=BUCKETS, captioner=CaptionerConfig(batch=3))
    with DecoderProcess(DecodeLimits()) as decoder:
        decoder.scan(clips / "carphone_pristine.mp4", config.cuts)
        child = decoder.pid
        plan = plan_video(SourceVideo(str(clips / "carphone_pristine.mp4")), config, decoder, Counting())
        assert child is not None and decoder.pid == child and all(clip.caption for clip in plan.clips)
