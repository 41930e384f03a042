"""The compose files as Docker Compose reads them: merged, interpolated from .env, by profile."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import podman_compose
import yaml
from dotenv import dotenv_values

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
FILE = DEPLOY / "docker-compose.yml"
NFS_FILE = DEPLOY / "docker-compose.nfs.yml"

Service = dict[str, Any]


def settings(**shell: str) -> dict[str, str]:
    """What .env sets, and the shell over it."""
    values = dotenv_values(DEPLOY / ".env")
    return {name: value or "" for name, value in values.items()} | shell


def load(file: Path = FILE, **shell: str) -> dict[str, Any]:
    """One compose file, interpolated. ValueError when a variable that is required is empty."""
    content: dict[str, Any] = podman_compose.rec_subs(
        yaml.safe_load(file.read_text()), settings(**shell)
    )
    return content


def services(profile: str, **shell: str) -> dict[str, Service]:
    """What `docker compose --profile PROFILE up` starts."""
    return {
        name: service
        for name, service in load(**shell)["services"].items()
        if profile in service.get("profiles", [profile])
    }


def command(service: Mapping[str, Any]) -> list[str]:
    """The words that the container runs."""
    words = service["command"]
    words = shlex.split(words) if isinstance(words, str) else list(words)
    return [*service["entrypoint"], *words]


def health_command(service: Mapping[str, Any]) -> list[str]:
    """The words of the health check."""
    kind, *words = service["healthcheck"]["test"]
    assert kind == "CMD"
    return words


def published(service: Mapping[str, Any]) -> tuple[str, int, int]:
    """Address, port on the host and port in the container of the one port that is published."""
    (port,) = service["ports"]
    address, outside, inside = port.split(":")
    return address, int(outside), int(inside)


def mounts(service: Mapping[str, Any]) -> dict[str, str]:
    """Path in the container -> what is mounted there."""
    return {volume["target"]: volume["source"] for volume in service.get("volumes", [])}
