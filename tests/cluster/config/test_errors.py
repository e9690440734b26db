import random
from pathlib import Path
from typing import Literal

import pytest
import yaml
from pydantic import Field, ValidationError

from cluster.config import SECTIONS, Section, section_class
from cluster.config.errors import explain, key_lines
from tests.helpers.job_config import GOOD, refused


@pytest.mark.parametrize(
    ("wrong", "right", "line", "message"),
    [
        ("trainn:\n  clip: 1\n", "", 1, "unknown section `trainn`; did you mean `train`?"),
        ("", "  sede: 7\n", 3, "unknown key `run.sede`; did you mean `seed`?"),
        ("", "  seed: seven\n", 3, "`run.seed`: Input should be a valid integer"),
    ],
)
def test_file_errors_name_file_line_and_mend(file: Path, wrong: str, right: str, line: int, message: str) -> None:
    file.write_text(wrong + (GOOD.replace("  seed: 7\n", right) if right else GOOD))
    assert refused(file).startswith(f"{file}:{line}: {message}")


def test_errors_inside_lists_have_their_own_line(file: Path) -> None:
    file.write_text(GOOD.replace("frames: 1", "framse: 1").replace("steps: 4", "steps: -1"))
    first, second = refused(file).splitlines()
    assert first == f"{file}:9: unknown key `curriculum.stages.0.mix.0.framse`; did you mean `frames`?"
    assert second.startswith(f"{file}:11: `curriculum.stages.1.steps`: Input should be greater than or equal to 0")


def test_a_key_written_twice_is_refused(file: Path) -> None:
    file.write_text(GOOD.replace("  seed: 7\n", "  seed: 7\n  name: other\n"))
    assert refused(file) == f"{file}:4: `name` is already set on line 2; keep one of the two"


class Left(Section):
    kind: Literal["left"]
    weight: float = 1.0


class Right(Section):
    kind: Literal["right"]
    height: int = 1


class Holder(Section):
    parts: tuple[Left | Right, ...] = ()
    named: dict[str, Left] = Field(default={})
    either: Left | Right | None = None


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (
            "parts:\n- kind: left\n- kind: right\n  heigth: 3\n",
            4,
            "unknown key `holder.parts.1.heigth`; did you mean `height`?",
        ),
        ("named:\n  a:\n    kind: left\n    wieght: 1\n", 4, "unknown key `holder.named.a.wieght`; did you mean `weight`?"),
        ("either:\n  kind: left\n  wieght: 1\n", 3, "unknown key `holder.either.wieght`; did you mean `weight`?"),
    ],
)
def test_unknown_keys_inside_unions_and_mappings(text: str, line: int, message: str) -> None:
    nodes = {("holder", *place): at for place, at in key_lines(yaml.compose(text, Loader=yaml.SafeLoader)).items()}
    with pytest.raises(ValidationError) as caught:
        Holder.model_validate(yaml.safe_load(text))
    assert f"file:{line}: {message}" in explain(Path("file"), nodes, {}, "holder", Holder, caught.value).splitlines()


def test_random_misspellings_of_known_keys_are_recognised(file: Path) -> None:
    draw = random.Random(0)
    for name in SECTIONS:
        known = list(section_class(name).model_fields)
        if section_class(name).model_config["extra"] == "allow":
            continue
        for key in known:
            if len(key) < 5:
                continue
            at = draw.randrange(1, len(key) - 1)
            wrong = key[:at] + key[at + 1 :]
            if wrong not in known:
                assert f"unknown key `{name}.{wrong}`; did you mean `{key}`?" in refused(file, f"{name}.{wrong}=1"), key
