"""One YAML file to frozen, validated sections.

In comes a file and `section.key=value` overrides; out goes a `Config`, or a `ConfigError` that names file, line and key.
Begin with `loader.py`; `sections.py` says where each section's model stands, `errors.py` finds the line that is wrong.
"""

from cluster.config.errors import ConfigError
from cluster.config.loader import Config, load
from cluster.config.sections import SECTIONS, ClusterConfig, MetricsConfig, RunConfig, Section, section_class

__all__ = [
    "SECTIONS",
    "ClusterConfig",
    "Config",
    "ConfigError",
    "MetricsConfig",
    "RunConfig",
    "Section",
    "load",
    "section_class",
]
