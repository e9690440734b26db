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
