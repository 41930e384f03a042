"""What the compose files say, without starting anything."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import compose
import pytest
import yaml

VARIABLE = re.compile(r"\$\{(\w+)")
GPU = {"vllm_0", "vllm_1", "lmkv_0", "lmkv_1", "page"}
CPU = {"vllm_cpu_0", "vllm_cpu_1", "lmkv_cpu_0", "lmkv_cpu_1", "page_cpu"}


def tool(name: str) -> str:
    """A program of the environment that the tests run in."""
    found = shutil.which(name, path=str(Path(sys.executable).parent))
    assert found, f"{name} is not installed: make test sets it up"
    return found


@pytest.mark.parametrize("file", [compose.FILE, compose.NFS_FILE], ids=lambda file: file.name)
def test_the_compose_specification_allows_it(file: Path) -> None:
    check = [tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(file)]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_schema_check_refuses_what_docker_would(tmp_path: Path) -> None:
    """Else the test above could not fail."""
    content = yaml.safe_load(compose.FILE.read_text())
    content["services"]["lmkv_0"]["ulimit"] = {"memlock": -1}
    wrong = tmp_path / "docker-compose.yml"
    wrong.write_text(yaml.safe_dump(content))
    check = [tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(wrong)]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ulimit" in done.stdout


def compose_plugin() -> list[str]:
    """`docker compose` with an environment of its own, or a skip that says why not."""
    docker = shutil.which("docker")
    if docker is None:
        pytest.skip("Docker is not installed")
    done = subprocess.run(
        [docker, "compose", "version"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip("Docker has no compose plugin here")
    return [docker, "compose"]


@pytest.mark.parametrize("profile", ["gpu", "cpu"])
def test_docker_compose_reads_what_these_tests_read(profile: str) -> None:
    words = [*compose_plugin(), "--profile", profile, "config", "--format", "json"]
    environment = {
        name: os.environ[name] for name in ("PATH", "HOME", "DOCKER_CONFIG") if name in os.environ
    }
    done = subprocess.run(
        words, cwd=compose.DEPLOY, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout)["services"]
    ours = compose.services(profile)
    assert theirs.keys() == ours.keys()
    for name, service in ours.items():
        assert [*theirs[name]["entrypoint"], *theirs[name]["command"]] == compose.command(service)
        assert theirs[name]["environment"] == service["environment"]
        assert theirs[name]["healthcheck"]["test"] == service["healthcheck"]["test"]
        (port,) = theirs[name]["ports"]
        assert (port["host_ip"], int(port["published"]), port["target"]) == compose.published(
            service
        )


def test_a_plain_up_starts_the_gpu_services_and_the_cpu_profile_only_its_own() -> None:
    assert compose.settings()["COMPOSE_PROFILES"] == "gpu"
    assert compose.services("gpu").keys() == GPU
    assert compose.services("cpu").keys() == CPU


def test_every_variable_is_explained_in_env_and_every_one_there_is_used() -> None:
    text = compose.FILE.read_text() + compose.NFS_FILE.read_text()
    assert set(VARIABLE.findall(text)) | {"COMPOSE_PROFILES"} == compose.settings().keys()


def test_defaults_beside_a_variable_are_those_of_env() -> None:
    values = compose.settings()
    defaults = re.findall(r"\$\{(\w+):-([^}]*)\}", compose.FILE.read_text())
    assert len(defaults) > 10
    for name, default in defaults:
        assert values[name] == default, name


def test_the_model_and_its_options_reach_all_four_engines() -> None:
    found = compose.services("gpu", MODEL="some/model", VLLM_ARGS="-tp 1 --max-model-len 9")
    for name in GPU - {"page"}:
        words = compose.command(found[name])
        assert "some/model" in words
        assert words[-4:] == ["-tp", "1", "--max-model-len", "9"]


def test_ports_are_published_to_this_machine_only_and_none_twice() -> None:
    for profile in ("gpu", "cpu"):
        ports = [compose.published(service) for service in compose.services(profile).values()]
        assert {address for address, _, _ in ports} == {"127.0.0.1"}
        assert sorted(outside for _, outside, _ in ports) == [8000, 8001, 8002, 8003, 8501]


def test_each_gpu_engine_has_a_gpu_of_its_own() -> None:
    found = compose.services("gpu", GPU_LMKV_1="GPU-5")
    devices = {}
    for name in GPU - {"page"}:
        (device,) = found[name]["deploy"]["resources"]["reservations"]["devices"]
        assert device["driver"] == "nvidia"
        assert device["capabilities"] == ["gpu"]
        (devices[name],) = device["device_ids"]
    assert devices == {"vllm_0": "0", "vllm_1": "1", "lmkv_0": "2", "lmkv_1": "GPU-5"}
    assert not [name for name, service in compose.services("cpu").items() if "deploy" in service]


def without(service: compose.Service, *keys: str) -> dict[str, Any]:
    return {key: value for key, value in service.items() if key not in keys}


def test_engines_of_a_kind_differ_in_port_and_gpu_alone() -> None:
    for profile, kind in (
        ("gpu", "vllm"),
        ("gpu", "lmkv"),
        ("cpu", "vllm_cpu"),
        ("cpu", "lmkv_cpu"),
    ):
        found = compose.services(profile)
        first, second = found[f"{kind}_0"], found[f"{kind}_1"]
        own = ("ports", "deploy", "image")
        assert without(first, *own) == without(second, *own)
        assert compose.published(first)[1:] != compose.published(second)[1:]


def test_no_two_services_build_the_same_tag() -> None:
    # Compose builds at once, and the second export to a tag fails on a machine that has none yet.
    for profile in ("gpu", "cpu"):
        built = [s["image"] for s in compose.services(profile).values() if "build" in s]
        assert len(built) == len(set(built)) > 1


def test_lmkv_engines_and_the_page_share_one_directory() -> None:
    for profile, names in (
        ("gpu", ("lmkv_0", "lmkv_1", "page")),
        ("cpu", ("lmkv_cpu_0", "page_cpu")),
    ):
        found = compose.services(profile, KV_STORE_DIR="/fast/kv", LOCAL_HF_HOME="/models")
        for name in names:
            assert compose.mounts(found[name])["/mnt/kv"] == "/fast/kv"
            words = compose.command(found[name])
            assert words[words.index("--dir") + 1] == "/mnt/kv"
        for name, service in found.items():
            if "page" not in name:
                assert compose.mounts(service)["/hf"] == "/models"
                assert service["environment"]["HF_HOME"] == "/hf"


def test_the_page_attaches_to_every_engine_and_waits_for_none_to_be_ready() -> None:
    for profile, page in (("gpu", "page"), ("cpu", "page_cpu")):
        found = compose.services(profile)
        words = compose.command(found[page])
        addresses = words[words.index("--attach") + 1].split(",")
        kinds = {name: "lmkv" if "lmkv" in name else "plain" for name in found if name != page}
        assert addresses == [f"http://{name}:8000={kind}" for name, kind in kinds.items()]
        # The short form waits for the start alone.
        assert found[page]["depends_on"] == list(kinds)


def test_over_nfs_every_user_of_the_directory_gets_the_volume() -> None:
    with pytest.raises(ValueError, match="set NFS_SERVER"):
        compose.load(compose.NFS_FILE)
    found = compose.load(compose.NFS_FILE, NFS_SERVER="nas", NFS_PATH="/export/kv")
    whole = {**compose.services("gpu"), **compose.services("cpu")}
    users = {name for name, service in whole.items() if "/mnt/kv" in compose.mounts(service)}
    assert found["services"].keys() == users
    for service in found["services"].values():
        assert compose.mounts(service) == {"/mnt/kv": "kv"}
    options = found["volumes"]["kv"]["driver_opts"]
    assert options["type"] == "nfs"
    assert options["device"] == ":/export/kv"
    assert options["o"].split(",")[:2] == ["addr=nas", "nfsvers=4.2"]
    assert {"lookupcache=positive", "nconnect=8", "softerr"} <= set(options["o"].split(","))
