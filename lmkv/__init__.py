"""lmkv: an SSD, or a directory that several machines share, as vLLM's prefix cache.

Importing this package loads neither torch nor vLLM nor the C++ core; the names below are
resolved when they are first used.
"""

from typing import TYPE_CHECKING

from lmkv._version import __version__

if TYPE_CHECKING:
    from lmkv.config import Config
    from lmkv.errors import ConfigError

__all__ = ["Config", "ConfigError", "__version__"]


def __getattr__(name: str) -> object:
    if name == "Config":
        from lmkv.config import Config

        return Config
    if name == "ConfigError":
        from lmkv.errors import ConfigError

        return ConfigError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
