"""Builds the C++ core with CMake and Ninja; everything else is in pyproject.toml."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


def version() -> str:
    """The version in lmkv/_version.py, read without importing the package."""
    text = (ROOT / "lmkv" / "_version.py").read_text(encoding="utf-8")
    match = re.search(r'__version__ = "([^"]+)"', text)
    if match is None:
        raise RuntimeError("lmkv/_version.py has no __version__")
    return match.group(1)


def build_environment() -> dict[str, str]:
    """The environment with the cmake and ninja of the build requirements first in PATH."""
    import cmake
    import ninja

    path = os.pathsep.join([cmake.CMAKE_BIN_DIR, ninja.BIN_DIR, os.environ.get("PATH", "")])
    return {**os.environ, "PATH": path}


class CMakeBuild(build_ext):
    """Configures, builds and puts the module where setuptools wants it.

    ``LMKV_CMAKE_ARGS`` in the environment is passed on to CMake, for example
    ``-DLMKV_CUDA_ARCHITECTURES=90`` or ``-DLMKV_CUDA=OFF``.
    """

    def build_extension(self, ext: Extension) -> None:
        """Called by setuptools once, for ``lmkv._C``."""
        import ninja
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        # One build directory for each interpreter, kept: a second build compiles what changed.
        build = ROOT / "build" / f"python-{sys.implementation.cache_tag}"
        configure = [
            "cmake",
            "--fresh",  # what an earlier build was told is not remembered; objects are kept
            f"-S{ROOT}",
            f"-B{build}",
            "-GNinja",
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'RelWithDebInfo'}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            # Under pip's build isolation ninja lies in a directory that is another the next time.
            f"-DCMAKE_MAKE_PROGRAM={Path(ninja.BIN_DIR) / 'ninja'}",
            f"-DLMKV_VERSION={version()}",
            *os.environ.get("LMKV_CMAKE_ARGS", "").split(),
        ]
        install = ["cmake", "--install", str(build), "--prefix", str(target.parent), "--strip"]
        environment = build_environment()
        for command in (configure, ["cmake", "--build", str(build), "--target", "_C"], install):
            subprocess.run(command, check=True, env=environment)


setup(
    ext_modules=[Extension("lmkv._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
