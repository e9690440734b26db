"""What is asked of `videoar sample`: prompts from the command line or a file, checked; and what differs from training.

In:  prompts, the section `sample`, the stage that the weights were trained in. Out: a `SampleRequest`; lines for the user.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.records import Bucket
from pretrain.checkpoint.train_state import TrainedStage
from pretrain.model.text_tokenizer import TextError, TextTokenizer
from pretrain.sampling.guidance import SampleConfig, SampleError


@dataclass(frozen=True)
class SampleRequest:
    """What is to be generated."""

    prompts: Sequence[str]
    """Text of each video."""
    prefix: Path | None = None
    """Image or video that every sample continues."""
    prefix_frames: int = 0
    """Pixel frames to take of a video; 0 = the first half of a clip."""
    extend: int = 0
    """How often the clip is continued by frame re-encoding."""
    batch: int = 4
    """Prompts sampled together."""
    places: Sequence[str] = ()
    """Where each prompt comes from, such as prompts.txt:3, for messages; empty: they are counted."""

    def check(self, text: TextTokenizer) -> None:
        """Raise SampleError that names the first prompt that cannot be sampled."""
        for number, prompt in enumerate(self.prompts):
            place = self.places[number] if self.places else f"prompt {number + 1}"
            try:
                text.encode(prompt, refuse=True)
            except UnicodeEncodeError as error:
                raise SampleError(f"{place}: not valid text (character {error.start + 1}): write it in UTF-8") from error
            except TextError as error:
                raise SampleError(f"{place}: {error}") from error


def read_prompts(path: Path) -> tuple[list[str], list[str]]:
    """Return the prompts of a text file in UTF-8, one a line, and where each stands; empty lines are left out. Raises SampleError."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise SampleError(f"{path}: cannot read the prompts: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SampleError(f"{path}: not a text file in UTF-8 ({error.reason} at byte {error.start})") from error
    found = [(line.strip(), f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise SampleError(f"{path}: no prompt; write one a line")
    return [text for text, _ in found], [place for _, place in found]


def differences(trained: TrainedStage, shape: Bucket, sampling: SampleConfig) -> list[str]:
    """Return a line for each choice that the weights were not trained for."""
    lines = []
    if shape.name not in trained.shapes:
        lines.append(f"{shape.name} was not trained on in stage {trained.name}, but {', '.join(trained.shapes)}")
    if sampling.fps and trained.fps and sampling.fps != trained.fps:
        lines.append(f"sample.fps is {sampling.fps:g}, it was trained on clips of {trained.fps:g} frames a second")
    guidance = (*sampling.guidance, sampling.guidance_end)
    if guidance != trained.guidance:
        lines.append(
            f"guidance {guidance} (sample.guidance, sample.guidance_end), its run was configured for {trained.guidance}"
        )
    return lines
