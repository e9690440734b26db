"""A small configuration for the tests of reading one."""

from pathlib import Path

import pytest

from cluster.config import ConfigError, load

GOOD = """\
run:
  name: trial
  seed: 7
curriculum:
  stages:
    - name: images
      steps: 3
      mix:
        - {bucket: f005x32x32, batch: 2, frames: 1}
    - name: videos
      steps: 4
      mix: [{bucket: f005x32x32, batch: 2}]
"""


def refused(path: Path, *overrides: str) -> str:
    """Return the message with which a configuration is refused."""
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    return str(caught.value)
