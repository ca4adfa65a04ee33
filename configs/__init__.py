"""Every run we ship, as YAML, and the one way a YAML file becomes a config.

Imports nothing of the other parts, so that each of them can be configured without a circle.
"""

from configs.loading import ConfigError, StrictConfig, load, shipped

VERSION = "0.1.0.dev0"

__all__ = ["VERSION", "ConfigError", "StrictConfig", "load", "shipped"]
