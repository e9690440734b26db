"""One YAML file in, frozen and validated sections out.

In: a file and `section.key=value` overrides. Out: a `Config`, or a `ConfigError` that names the file, the line and the key.
Read `loader.py` first; `sections.py` lists the sections and where their models are defined.
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
