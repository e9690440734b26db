from pathlib import Path

from cluster.runtime.source_tree import PACKAGES, source_root


def test_the_root_holds_all_packages(root: Path) -> None:
    assert source_root() == root
    for package in PACKAGES:
        assert (source_root() / package / "__init__.py").is_file()
