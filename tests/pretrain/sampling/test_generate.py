"""`videoar sample` on an untrained model and tokenizer: what is asked for is what is made."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cluster.config import Config, load
from pipeline.video import VideoWriter, iter_frames, probe, write_video
from pretrain.checkpoint.train_state import TrainedStage
from pretrain.sampling.clip_state import ClipState, SampledScale
from pretrain.sampling.generate import VideoGenerator, run
from pretrain.sampling.guidance import SampleError
from pretrain.sampling.request import SampleRequest
from tests.helpers import exported_run
from tokenizer.codec import save
from tokenizer.network.network import Network

BUCKET = "f009x32x40"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A configuration whose run folder is an exported model that fits the tokenizer."""
    exported_run.make(tmp_path)
    (tmp_path / "c.yaml").write_text(f"run: {{dir: {tmp_path / 'run'}}}\ntokenizer: {{weights: {tmp_path / 'tokenizer'}}}\n")
    return load(tmp_path / "c.yaml")


def _frames(path: Path) -> np.ndarray:
    return np.stack([frame for _, frame in iter_frames(path)])


def made(generator: VideoGenerator, prompts: list[str], seed: int) -> torch.Tensor:
    """A whole clip a prompt, uint8 (B, T, H, W, 3)."""
    parts: list[torch.Tensor] = []
    generator.clip(prompts, None, parts.append, seed=seed)
    return torch.cat(parts, dim=1)


def test_text_to_video(config: Config, tmp_path: Path) -> None:
    files = run(config, SampleRequest(["a cat", "a dog", ""], batch=2), tmp_path / "out", bucket=BUCKET)
    assert [file.name for file in files] == ["000.mp4", "001.mp4", "002.mp4"]
    for file in files:
        assert _frames(file).shape == (9, 32, 40, 3)
        assert probe(file).fps == pytest.approx(8)
    said = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert said["prompts"] == ["a cat", "a dog", ""] and said["bucket"] == "f009x32x40"
    with Image.open(tmp_path / "out" / "sheet.png") as sheet:
        assert sheet.size == (9 * 44, 3 * 36)


def test_what_else_is_in_the_batch_has_no_part_in_a_sample(config: Config) -> None:
    generator = VideoGenerator.load(config, bucket=BUCKET)
    cat, dog = made(generator, ["a cat", "a dog"], seed=3).float()
    again, cow = made(generator, ["a cat", "a cow"], seed=3).float()
    # The sums of float32 may be taken in another order (threads of a busy machine): a level or two, never another picture.
    assert float((again - cat).abs().mean()) < 0.5
    assert float((cow - dog).abs().mean()) > 1


def test_streamed_frames_equal_decoding_the_whole(config: Config) -> None:
    generator = VideoGenerator.load(config, bucket=BUCKET)
    streamed = made(generator, ["x"], seed=3)
    bits = generator.sampler.sample(["x"], generator.grid, seed=3)
    whole = generator.codec.decode(bits, 32, 40)
    assert int((streamed.int() - whole.int()).abs().max()) <= 1  # float32 sums in another order may round one level apart


def test_continuation_and_extension(config: Config, tmp_path: Path) -> None:
    video = tmp_path / "in.mp4"
    ramp = np.arange(12, dtype=np.uint8)[:, None, None, None] * 15
    write_video(video, np.broadcast_to(ramp, (12, 32, 40, 3)).copy(), 8)
    files = run(config, SampleRequest(["x"], prefix=video, extend=2), tmp_path / "out", bucket=BUCKET)
    # 9 frames, 5 of them given; each extension encodes the last 5 anew and adds 4.
    assert _frames(files[0]).shape[0] == 9 + 2 * 4
    said = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert said["prefix"] == "in.mp4" and said["prefix_frames"] == 5 and said["extended"] == 2


def test_image_to_video(config: Config, tmp_path: Path) -> None:
    Image.fromarray(np.full((50, 60, 3), 90, dtype=np.uint8)).save(tmp_path / "in.png")
    files = run(config, SampleRequest(["x"], prefix=tmp_path / "in.png"), tmp_path / "out", bucket=BUCKET)
    assert _frames(files[0]).shape[0] == 9
    assert json.loads((tmp_path / "out" / "samples.json").read_text())["prefix_frames"] == 1


def test_a_prefix_shorter_than_a_chunk_is_refused(config: Config, tmp_path: Path) -> None:
    video = tmp_path / "short.mp4"
    write_video(video, np.zeros((3, 32, 40, 3), dtype=np.uint8), 8)
    generator = VideoGenerator.load(config, bucket=BUCKET)
    with pytest.raises(SampleError, match=r"short\.mp4: 3 frames .* the prefix takes 5"):
        generator.read_prefix(video)
    assert generator.read_prefix(video, 1).shape == (1, 32, 40, 3)
    with pytest.raises(ValueError, match=r"1 \+ 4n"):
        generator.read_prefix(video, 3)


def test_weights_of_another_tokenizer_are_refused(config: Config, tmp_path: Path) -> None:
    torch.manual_seed(1)
    save(tmp_path / "tokenizer", exported_run.NETWORK, Network(exported_run.NETWORK).state_dict(), {})
    with pytest.raises(SampleError, match=r"set tokenizer\.weights"):
        run(config, SampleRequest(["x"]), tmp_path / "out", bucket=BUCKET)


def test_guidance_needs_a_trained_null_token(config: Config, tmp_path: Path) -> None:
    path = tmp_path / "run" / "model.json"
    plain = json.loads(path.read_text())
    plain["objective"]["condition_drop"] = 0
    path.write_text(json.dumps(plain))
    with pytest.raises(SampleError, match="condition_drop 0"):
        VideoGenerator.load(config, bucket=BUCKET)
    plain = load(tmp_path / "c.yaml", ["sample.guidance=[1,1]", "sample.guidance_end=1"])
    assert VideoGenerator.load(plain, bucket=BUCKET).window == 0


def test_frames_are_with_the_encoder_before_the_last_latent_is_begun(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """9 frames are 3 latents: the first frame's picture must be written while the third latent is still to be made."""
    written = threading.Event()
    seen: list[bool] = []
    append, frame = VideoWriter.append, ClipState.frame

    def appended(writer: VideoWriter, frames: np.ndarray) -> None:
        append(writer, frames)
        written.set()

    def watched(state: ClipState, number: int) -> Iterator[SampledScale]:
        if number == 2:
            seen.append(written.wait(60))
        yield from frame(state, number)

    monkeypatch.setattr(VideoWriter, "append", appended)
    monkeypatch.setattr(ClipState, "frame", watched)
    files = run(config, SampleRequest(["x"]), tmp_path / "out", bucket=BUCKET)
    assert seen == [True] and _frames(files[0]).shape[0] == 9


def test_a_full_disk_ends_the_sampling(config: Config) -> None:
    generator = VideoGenerator.load(config, bucket=BUCKET)
    taken: list[int] = []

    def take(frames: torch.Tensor) -> None:
        taken.append(frames.shape[1])
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        generator.clip(["x"], None, take, seed=1)
    assert taken[0] == 1


def test_the_shape_is_the_longest_of_the_last_stage_or_has_to_be_named(config: Config, tmp_path: Path) -> None:
    with pytest.raises(SampleError, match=r"curriculum\.stages is empty; name one with --bucket"):
        VideoGenerator.load(config)
    mix = "[{bucket: f017x32x40, frames: 5, batch: 1}, {bucket: f009x32x40, batch: 1}, {bucket: f009x32x32, batch: 1}]"
    stages = f"curriculum.stages=[{{name: a, steps: 1, mix: {mix}, window: 2}}]"
    generator = VideoGenerator.load(load(tmp_path / "c.yaml", [stages]))
    assert generator.bucket.name == "f009x32x40" and generator.window == 2


def test_window_shape_and_rate_are_those_of_the_stage_that_was_trained(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The configuration's last stage says nothing about weights of an earlier one."""
    path = tmp_path / "run" / "model.json"
    plain = json.loads(path.read_text())
    trained = TrainedStage("low", 1, (BUCKET, "f001x32x40"), 12.0, "float32", 0.1, (1.0, 5.0, 10.0))
    path.write_text(json.dumps({**plain, "objective": {**plain["objective"], "window": 1}, "trained": trained.plain()}))
    mix = "[{bucket: f017x64x64, batch: 1}]"
    planned = load(tmp_path / "c.yaml", [f"curriculum.stages=[{{name: high, steps: 1, mix: {mix}, window: 2}}]"])
    generator = VideoGenerator.load(planned)
    assert (generator.bucket.name, generator.window, generator.fps) == (BUCKET, 1, 12.0)
    assert capsys.readouterr().err == ""
    generator = VideoGenerator.load(load(tmp_path / "c.yaml", ["sample.fps=8"]), bucket="f009x32x32")
    assert (generator.bucket.name, generator.window, generator.fps) == ("f009x32x32", 1, 8.0)
    warned = capsys.readouterr().err.splitlines()
    assert len(warned) == 2 and "f009x32x32 was not trained on in stage low" in warned[0] and "sample.fps is 8" in warned[1]
    run(config, SampleRequest(["x"]), tmp_path / "out")
    assert probe(tmp_path / "out" / "000.mp4").fps == pytest.approx(12)
    path.write_text(json.dumps({**plain, "averaged": True, "start_share": 0.75}))
    capsys.readouterr()
    VideoGenerator.load(config, bucket=BUCKET)
    assert "75% of the moving average is the random start" in capsys.readouterr().err


def test_a_bad_prompt_is_named_before_anything_is_made(config: Config, tmp_path: Path) -> None:
    with pytest.raises(SampleError, match=r"^prompt 2: caption of 13 tokens is longer"):
        run(config, SampleRequest(["a", "thirteen byte"]), tmp_path / "out", bucket=BUCKET)
    assert not (tmp_path / "out").exists()


@pytest.mark.gpu
def test_frames_decoded_beside_the_sampling_equal_decoding_the_whole(config: Config) -> None:
    """Three clips one after the other: of one shape, with other text, and with a prefix."""
    generator = VideoGenerator.load(config, bucket=BUCKET, device="cuda")
    given = torch.randint(0, 256, (1, 5, 32, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for prompt, prefix in (("x", None), ("a whale", None), ("x", given)):
        parts: list[torch.Tensor] = []
        generator.clip([prompt], prefix, parts.append, seed=3)
        bits = None if prefix is None else generator.codec.encode(prefix).bits
        whole = generator.codec.decode(generator.sampler.sample([prompt], generator.grid, seed=3, prefix=bits), 32, 40)
        assert int((torch.cat(parts, dim=1).int() - whole.cpu().int()).abs().max()) <= 2  # sums in another order
