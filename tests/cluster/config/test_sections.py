import pytest
from pydantic import ValidationError

from cluster.config import SECTIONS, RunConfig, Section, section_class


def test_sections_name_existing_models() -> None:
    for name in SECTIONS:
        assert issubclass(section_class(name), Section)


def test_every_documented_key_has_its_docstring() -> None:
    bare = [
        f"{name}.{key}" for name in SECTIONS for key, field in section_class(name).model_fields.items() if not field.description
    ]
    assert not bare


def test_a_section_is_frozen_and_refuses_unknown_keys() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        RunConfig().seed = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="sede"):
        RunConfig.model_validate({"sede": 3})


@pytest.mark.parametrize("url", ["s3://bucket/x", "gs://b", "hdfs://host:9/x"])
def test_a_key_that_takes_a_path_refuses_a_url(url: str) -> None:
    for section, key in (("pipeline", "output"), ("run", "dir"), ("tokenizer", "weights"), ("curriculum", "cache")):
        with pytest.raises(ValidationError, match=rf"{url} is a URL, and this key takes a path"):
            section_class(section).model_validate({key: url})
    assert str(section_class("curriculum").model_validate({"shards": [url]}).shards[0]) == url, "this one reads URLs"  # type: ignore[attr-defined]
    assert section_class("pipeline").model_validate({"output": "a:b/c:/d"})
