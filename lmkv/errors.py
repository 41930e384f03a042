"""The exceptions that lmkv raises. Those of the C++ core are the same classes."""

from lmkv._C import ArenaError, ConfigError, DeviceError

__all__ = ["ArenaError", "ConfigError", "DeviceError"]
