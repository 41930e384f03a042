"""What ``lmkv doctor`` says of a remote tier."""

import json
import os
import time
from pathlib import Path

from remote_servers import free_ports, s3_options
from typer.testing import CliRunner

from lmkv.cli import app, doctor_remote
from lmkv.cli.diagnosis import Diagnosis
from lmkv.config import Config


def examine(remote: str, options: dict[str, str] | None = None) -> Diagnosis:
    found = Diagnosis()
    given = {"path": "/kv", "remote": remote, "remote_options": options or {}}
    doctor_remote.examine_remote(found, Config.from_sources(given, {}))
    assert found.problems == []
    return found


def test_one_that_works_is_told_with_its_times(
    s3_port: int, mooncake_options: dict[str, str], credentials: None
) -> None:
    for remote, options in (
        ("s3://bucket/doctor", s3_options(s3_port)),
        ("mooncake:///doctor", mooncake_options),
    ):
        found = examine(remote, options)
        assert found.notes == []
        assert "1 MiB put in" in found.facts["remote"]


def test_it_leaves_nothing(s3_port: int, credentials: None) -> None:
    import obstore
    from obstore.store import S3Store

    examine("s3://bucket/doctor-leaves", s3_options(s3_port))
    options = s3_options(s3_port)
    store = S3Store(
        "bucket", endpoint=options["endpoint"], region="us-east-1",
        access_key_id=os.environ["AWS_ACCESS_KEY_ID"],
        secret_access_key=os.environ["AWS_SECRET_ACCESS_KEY"],
        client_options={"allow_http": True},
    )  # fmt: skip
    assert [one for batch in obstore.list(store, "doctor-leaves") for one in batch] == []


def test_one_that_is_not_there_is_a_note(credentials: None) -> None:
    (port,) = free_ports(1)
    found = examine("s3://bucket", s3_options(port))
    assert "cannot be used" in found.facts["remote"]
    assert "Until then engines do without it" in found.notes[0]
    assert "mooncake" in examine("mooncake://", {}).facts["remote"]


def test_a_master_that_is_not_there_is_said_at_once() -> None:
    """Mooncake's own set-up would keep the GIL for a minute and a half."""
    (port,) = free_ports(1)
    begin = time.monotonic()
    found = examine(f"mooncake://127.0.0.1:{port}")
    assert time.monotonic() - begin < 10
    assert "refused" in found.notes[0]


def test_a_directory_is_looked_at_as_such(tmp_path: Path) -> None:
    found = examine(f"file://{tmp_path}/shared")
    assert str(tmp_path) in found.facts["remote"]
    assert found.notes == []
    (tmp_path / "file").touch()
    assert "cannot be used" in examine(f"file://{tmp_path}/file/below").facts["remote"]


def test_doctor_says_so_of_a_config(tmp_path: Path) -> None:
    extra = {"path": str(tmp_path / "kv"), "remote": f"file://{tmp_path}/shared"}
    config = {
        "kv_connector": "LMKVConnector", "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute", "kv_connector_extra_config": extra,
    }  # fmt: skip
    done = CliRunner().invoke(app, ["doctor", "--config", json.dumps(config)])
    assert "remote" in done.output
    assert "shared:" in done.output
    assert (tmp_path / "shared").is_dir()
