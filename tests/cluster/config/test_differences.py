from cluster.config.differences import changed_keys, differences, flat

OLD = {"fps": 8.0, "model": {"layers": 6, "mix": [1, 2]}, "gone": {"deep": {"x": 1}}, "empty": {}}
NEW = {"fps": 12.0, "model": {"layers": 6, "mix": [1, 3]}, "empty": {}, "fresh": None}


def test_nested_keys_are_dotted_and_lists_are_values() -> None:
    assert flat(OLD) == {"fps": 8.0, "model.layers": 6, "model.mix": [1, 2], "gone.deep.x": 1, "empty": {}}


def test_changed_keys_are_sorted_and_a_missing_key_counts_as_null() -> None:
    assert changed_keys(OLD, NEW) == ["fps", "gone.deep.x", "model.mix"]
    assert changed_keys(OLD, OLD) == []


def test_each_difference_is_one_line() -> None:
    assert list(differences(OLD, NEW)) == ["fps: 8.0 -> 12.0", "gone.deep.x: 1 -> null", "model.mix: [1, 2] -> [1, 3]"]
