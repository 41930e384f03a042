"""Peers in environments of their own: what they ask for does not change what lmkv runs with."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LMCACHE = "lmcache==0.5.6"


def packages_of(requirement: str) -> Path:
    """The site-packages of an environment in build/peers that has ``requirement`` and all that it
    asks for, but what this interpreter has of it; made on the first call, in minutes.
    """
    folder = ROOT / "build" / "peers" / requirement.replace("==", "-")
    packages = folder / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    done = folder / ".done"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        # Not read for .pth files of its own: an editable lmkv is not seen there.
        (packages / "of-lmkv.pth").write_text(sysconfig.get_path("purelib") + "\n")
        install = [f"{folder}/bin/python", "-m", "pip", "install", "--quiet", requirement]
        subprocess.run(install, check=True, stdout=sys.stderr)
        done.touch()
    return packages
