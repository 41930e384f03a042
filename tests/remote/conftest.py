"""Remote engines, of which one of each kind serves all tests."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from remote_servers import ACCESS_KEY, SECRET_KEY, mooncake, s3_options, seaweedfs

from lmkv.remote.store import Place


@pytest.fixture(scope="session")
def s3_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as port:
        yield port


@pytest.fixture(scope="session")
def mooncake_options(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with mooncake(tmp_path_factory.mktemp("mooncake")) as options:
        yield options


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)


@pytest.fixture(params=["s3", "mooncake"])
def place(request: pytest.FixtureRequest, credentials: None) -> Place:
    """A remote tier with nothing of this test in it."""
    prefix = request.node.name.replace("[", "-").rstrip("]")
    if request.param == "s3":
        options = s3_options(request.getfixturevalue("s3_port"))
        return Place.parse(f"s3://bucket/{prefix}", options)
    options = request.getfixturevalue("mooncake_options")
    master = options["master_server_address"]
    return Place.parse(
        f"mooncake://{master}/{prefix}", {"metadata_server": options["metadata_server"]}
    )
