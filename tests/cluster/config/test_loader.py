from pathlib import Path

import pytest

from cluster.config import SECTIONS, MetricsConfig, RunConfig, Section, load
from tests.helpers.job_config import GOOD, refused


def test_every_section_is_filled_in_and_reachable_by_its_model(file: Path) -> None:
    config = load(file)
    assert list(config.sections) == list(SECTIONS)
    assert config.get(RunConfig) == RunConfig(name="trial", seed=7)
    assert config.get(MetricsConfig).port == 9400
    with pytest.raises(KeyError, match="Other is no configuration section"):
        config.get(type("Other", (Section,), {}))


def test_the_resolved_whole_reads_back_equal_with_the_same_digest(file: Path, tmp_path: Path) -> None:
    config = load(
        file, ["train.betas=[0.8, 0.9]", "tokenizer.scales={8x8: [[1, 1], [8, 8]]}", "deepspeed.wall_clock_breakdown=true"]
    )
    again = tmp_path / "again.yaml"
    again.write_text(config.yaml())
    assert load(again).sections == config.sections
    assert load(again).digest() == config.digest()


def test_the_digest_ignores_key_order_and_sees_values(file: Path, tmp_path: Path) -> None:
    shuffled = tmp_path / "shuffled.yaml"
    shuffled.write_text("run: {seed: 7, name: trial}\n" + GOOD.partition("curriculum:")[1] + GOOD.partition("curriculum:")[2])
    assert load(shuffled).digest() == load(file).digest()
    other = load(file, ["run.seed=8"])
    assert other.digest() != load(file).digest()
    assert other.digest("run") != load(file).digest("run") and other.digest("model") == load(file).digest("model")


def test_overrides_reach_lists_and_sections_that_the_file_lacks(file: Path) -> None:
    config = load(file, ["curriculum.stages.1.steps=9", "train.clip=0.5", "corpus.videos=[a, b]", "run.dir=some/where"])
    assert [stage.steps for stage in config.sections["curriculum"].stages] == [3, 9]
    assert config.sections["train"].clip == 0.5
    assert config.sections["corpus"].videos == ("a", "b")
    assert config.get(RunConfig).dir == Path("some/where")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.clip", "override `train.clip`: write it as section.key=value"),
        ("clip=1", "override `clip=1`: write it as section.key=value"),
        ("train..clip=1", "override `train..clip=1`: write it as section.key=value"),
        ("trian.clip=1", "override `trian.clip=1`: unknown section `trian`; did you mean `train`?"),
        ("train.clipp=1", "override `train.clipp=1`: unknown key `train.clipp`; did you mean `clip`?"),
        ("train.clip=[", "override `train.clip=[`: the value is not valid YAML"),
        ("train.clip=-1", "override `train.clip=-1`: `train.clip`: Input should be greater than 0 (found -1)"),
        ("train.clip=.nan", "override `train.clip=.nan`: `train.clip`: Input should be"),
        ("curriculum.stages.5.steps=1", "`5` is not an index into a list of 2 (counted from 0)"),
        ("curriculum.stages.x.steps=1", "`x` is not an index into a list of 2"),
        ("run.seed.low=1", "`run.seed` is a plain value and has no keys"),
        ("curriculum.stages.1.stpes=1", "unknown key `curriculum.stages.1.stpes`; did you mean `steps`?"),
    ],
)
def test_wrong_overrides_are_named(file: Path, override: str, message: str) -> None:
    assert message in refused(file, override)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"- a\n- b\n", ":1: the configuration must be a mapping of sections, found list"),
        (b"run: {seed: [}\n", ": not valid YAML"),
        (b"run: \xff\xfe\n", ": not a text file in UTF-8"),
        (b"run: !!python/object/apply:os.getcwd []\n", ": not valid YAML"),
    ],
)
def test_files_that_are_no_configuration(file: Path, content: bytes, message: str) -> None:
    file.write_bytes(content)
    assert refused(file).startswith(f"{file}{message}")


def test_a_missing_file_and_an_empty_one(tmp_path: Path) -> None:
    assert refused(tmp_path / "none.yaml") == f"{tmp_path}/none.yaml: cannot read the configuration: No such file or directory"
    empty = tmp_path / "empty.yaml"
    empty.write_text("")
    assert load(empty).get(RunConfig) == RunConfig()
