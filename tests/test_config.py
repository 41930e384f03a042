import dataclasses
import json

import pytest

from lmkv import ConfigError
from lmkv.config import NOT_SETTINGS, Config, settings_table
from lmkv.values import HostMemory, format_size, parse_host_memory, parse_size


def test_defaults_apply_when_only_the_path_is_given():
    config = Config.from_sources({"path": "/cache"}, {})
    assert config == Config(
        path=("/cache",),
        chunk_tokens=256,
        host_memory=HostMemory(2 * 2**30),
        capacity=0,
        free_space_floor=5.0,
        io_engine="auto",
        direct_io="auto",
        shared="auto",
        file_mode="private",
        io_threads=1,
        load_timeout=0.0,
        store_generated=False,
        store_tail=True,
        namespace="",
    )


def test_extra_config_wins_over_the_environment():
    config = Config.from_sources(
        {"path": "/extra", "store_tail": False},
        {"LMKV_PATH": "/env", "LMKV_IO_THREADS": "3", "LMKV_STORE_TAIL": "true", "PATH": "/bin"},
    )
    assert (config.path, config.io_threads, config.store_tail) == (
        ("/extra",),
        3,
        False,
    )


@pytest.mark.parametrize(
    ("value", "size"),
    [
        ("500GiB", 500 * 2**30),
        ("2GB", 2 * 10**9),
        ("1.5 MiB", 3 * 2**19),
        ("4096", 4096),
        ("7B", 7),
        ("1tib", 2**40),
        (123456789, 123456789),
    ],
)
def test_sizes_are_read(value, size):
    assert parse_size(value) == size


@pytest.mark.parametrize("value", ["", "GiB", "2G", "-1GiB", "2 gigs", None, True, 1.5])
def test_what_is_no_size_is_refused_and_shown(value):
    with pytest.raises(ConfigError, match="size"):
        parse_size(value)


@pytest.mark.parametrize(
    ("value", "memory"),
    [
        ("2GiB", HostMemory(2 << 30)),
        (1 << 30, HostMemory(1 << 30)),
        ("shared:64GiB", HostMemory(64 << 30, is_shared=True)),
        (" shared: 1.5 MiB ", HostMemory(3 << 19, is_shared=True)),
    ],
)
def test_host_memory_is_read_and_reads_back(value, memory):
    assert parse_host_memory(value) == memory
    assert parse_host_memory(str(memory)) == memory


@pytest.mark.parametrize("value", ["shared", "shared:", "sharde:1GiB", "shared:shared:1GiB"])
def test_what_is_no_host_memory_is_refused(value):
    with pytest.raises(ConfigError, match=r"host_memory: .*size"):
        Config.from_sources({"path": "/c", "host_memory": value}, {})


@pytest.mark.parametrize("size", [0, 1, 1023, 4096, 3 * 2**20, 2**40, 10**9])
def test_a_formatted_size_reads_back(size):
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize(
    ("extra", "environ", "message"),
    [
        ({"path": "/c", "chunk_token": 64}, {}, "chunk_token: .*chunk_tokens"),
        ({"path": "/c", "store_tails": 1}, {}, "store_tails: .*store_tail"),
        ({"path": "/c"}, {"LMKV_HOST_MEM": "1GiB"}, "LMKV_HOST_MEM: .*LMKV_HOST_MEMORY"),
        ({"path": "/c"}, {"LMKV_path": "/x"}, "LMKV_path: .*LMKV_"),
    ],
)
def test_an_unknown_setting_names_the_nearest_known_one(extra, environ, message):
    with pytest.raises(ConfigError, match=message):
        Config.from_sources(extra, environ)


def test_variables_of_other_parts_of_lmkv_are_no_settings():
    assert Config.from_sources({"path": "/c"}, dict.fromkeys(NOT_SETTINGS, "x")).path == ("/c",)


@pytest.mark.parametrize(
    "variable",
    [
        "LMKV_SERVICE_HOST",
        "LMKV_SERVICE_PORT",
        "LMKV_SERVICE_PORT_HTTP",
        "LMKV_PORT",
        "LMKV_PORT_8000_TCP",
        "LMKV_PORT_8000_TCP_ADDR",
    ],
)
def test_what_kubernetes_sets_for_a_service_of_the_name_is_no_setting(variable):
    config = Config.from_sources({"path": "/c"}, {variable: "tcp://10.0.0.1:8000"})
    assert config.path == ("/c",)


@pytest.mark.parametrize("variable", ["LMKV_PORTS", "LMKV_PORT_NUMBER", "LMKV_SERVICE_NAME"])
def test_what_only_resembles_it_is_an_error(variable):
    with pytest.raises(ConfigError, match=variable):
        Config.from_sources({"path": "/c"}, {variable: "1"})


def test_differences_are_said_by_name():
    one = Config(path=("/c",))
    assert one.differences(one) == []
    assert one.differences(Config(path=("/c", "/d"), store_tail=False)) == [
        "path: '/c', not '/c', '/d'",
        "store_tail: True, not False",
    ]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({}, "path: missing.*LMKV_PATH"),
        ({"path": "cache"}, "path: .*absolute"),
        ({"path": ["/c", "cache"]}, "path: .*absolute.*'cache'"),
        ({"path": ["/c", 7]}, "path: .*absolute.*7"),
        ({"path": ["/c", "/c/../c/"]}, "path: /c is named twice"),
        ({"path": []}, "path: .*empty list"),
        ({"path": {"/c": 1}}, "path: .*absolute"),
        ({"path": "/c", "chunk_tokens": 0}, "chunk_tokens"),
        ({"path": "/c", "chunk_tokens": "many"}, "chunk_tokens: .*whole number"),
        ({"path": "/c", "chunk_tokens": True}, "chunk_tokens"),
        ({"path": "/c", "host_memory": 1}, "host_memory"),
        ({"path": "/c", "host_memory": "2 gigs"}, "host_memory: .*size"),
        ({"path": "/c", "capacity": "a lot"}, "capacity: .*size"),
        ({"path": "/c", "capacity": -1}, "capacity"),
        ({"path": "/c", "free_space_floor": "half"}, "free_space_floor: .*percentage"),
        ({"path": "/c", "free_space_floor": True}, "free_space_floor: .*percentage"),
        ({"path": "/c", "free_space_floor": 91}, "free_space_floor"),
        ({"path": "/c", "free_space_floor": "nan"}, "free_space_floor"),
        ({"path": "/c", "free_space_floor": float("nan")}, "free_space_floor"),
        ({"path": "/c", "io_engine": "uring"}, "io_engine: .*auto, io_uring, threads"),
        ({"path": "/c", "direct_io": True}, "direct_io: .*auto, on, off"),
        ({"path": "/c", "shared": "on"}, "shared: .*auto, yes, no"),
        ({"path": "/c", "file_mode": "0660"}, "file_mode: .*private, group"),
        ({"path": "/c", "io_threads": 0}, "io_threads"),
        ({"path": "/c", "load_timeout": -1}, "load_timeout"),
        ({"path": "/c", "load_timeout": 86_401}, "load_timeout"),
        ({"path": "/c", "load_timeout": float("nan")}, "load_timeout"),
        ({"path": "/c", "load_timeout": "soon"}, "load_timeout: .*number"),
        ({"path": "/c", "load_timeout": True}, "load_timeout: .*number"),
        ({"path": "/c", "remote": "bucket"}, "remote: s3://bucket"),
        ({"path": "/c", "remote": "s3://key:secret@bucket"}, "remote: credentials"),
        ({"path": ["/d", "/c"], "remote": "file:///c"}, "remote: /c is in path"),
        ({"path": "/c", "remote_options": "[1"}, "remote_options: .*JSON"),
        ({"path": "/c", "remote_options": 7}, "remote_options: .*mapping"),
        (
            {"path": "/c", "remote": "s3://b", "remote_options": {"secret_access_key": "x"}},
            "secret_access_key: .*environment",
        ),
        ({"path": "/c", "remote_writes": "always"}, "remote_writes: .*write_behind"),
        ({"path": "/c", "remote_capacity": -1}, "remote_capacity"),
        ({"path": "/c", "remote_bandwidth": "fast"}, "remote_bandwidth: .*size"),
        ({"path": "/c", "store_tail": "maybe"}, "store_tail: .*true or false"),
        ({"path": "/c", "namespace": "a\nb"}, "namespace"),
        ({"path": "/c", "namespace": 7}, "namespace: .*text"),
    ],
)
def test_a_value_that_cannot_work_is_refused_by_name(extra, message):
    with pytest.raises(ConfigError, match=message):
        Config.from_sources(extra, {})


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("1", True), ("On", True), ("no", False), ("0", False)]
)
def test_truth_is_read_from_the_environment(text, value):
    config = Config.from_sources({"path": "/c"}, {"LMKV_STORE_GENERATED": text})
    assert config.store_generated is value


@pytest.mark.parametrize(
    ("value", "percent"), [(5, 5), (0, 0), (2.5, 2.5), ("10", 10), ("2.5 %", 2.5), ("7%", 7)]
)
def test_percentages_are_read(value, percent):
    assert Config(path=("/c",)).free_space_floor == 5
    assert Config.from_sources({"path": "/c", "free_space_floor": value}, {}) == Config(
        path=("/c",), free_space_floor=percent
    )


@pytest.mark.parametrize(
    ("value", "seconds"), [(0, 0), (86_400, 86_400), (2.5, 2.5), ("10", 10), ("0.5", 0.5)]
)
def test_times_are_read(value, seconds):
    assert Config.from_sources({"path": "/c", "load_timeout": value}, {}).load_timeout == seconds


def test_several_directories_are_a_list_and_in_the_environment_a_path():
    both = ("/nvme0/kv", "/nvme1/kv")
    assert Config.from_sources({"path": ["/nvme0/kv/", "/nvme1/kv"]}, {}).path == both
    assert Config.from_sources({}, {"LMKV_PATH": "/nvme0/kv:/nvme1/kv"}).path == both
    # What vLLM is told is one directory, whatever its name.
    assert Config.from_sources({"path": "/a:b"}, {}).path == ("/a:b",)
    with pytest.raises(ConfigError, match=r"LMKV_PATH: .*absolute path, not ''"):
        Config.from_sources({}, {"LMKV_PATH": "/nvme0/kv:"})


def test_options_of_a_remote_tier_are_a_mapping_and_in_the_environment_json():
    options = {"region": "eu-1", "allow_http": True}
    wanted = (("allow_http", "true"), ("region", "eu-1"))
    given = {"path": "/c", "remote": "s3://bucket/a/", "remote_options": options}
    config = Config.from_sources(given, {})
    assert config.remote == "s3://bucket/a"
    assert config.remote_options == wanted
    assert config.remote_place.options == dict(wanted)
    environ = {"LMKV_REMOTE_OPTIONS": json.dumps(options)}
    assert Config.from_sources({"path": "/c"}, environ).remote_options == wanted
    assert Config.from_sources({"path": "/c"}, {}).remote_place is None


def test_the_home_directory_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert Config.from_sources({"path": ["~/kv/", "~/b"]}, {}).path == (
        "/somewhere/kv",
        "/somewhere/b",
    )


def test_a_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config(path=("/c",)).path = ("/d",)


def test_a_chunk_is_a_whole_number_of_blocks():
    config = Config(path=("/c",), chunk_tokens=96)
    assert config.blocks_per_chunk(32) == 3
    with pytest.raises(ConfigError, match=r"block size.*use 64"):
        config.blocks_per_chunk(64)
    with pytest.raises(ConfigError, match="use 128"):
        config.blocks_per_chunk(128)


def test_the_table_has_a_row_for_every_setting():
    table = settings_table()
    for spec in dataclasses.fields(Config):
        assert f"| `{spec.name}` | `LMKV_{spec.name.upper()}` |" in table
    assert "`2GiB`" in table
    assert "| `LMKV_CAPACITY` | `0` | bytes |" in table
    assert "| `LMKV_FREE_SPACE_FLOOR` | `5` | percent |" in table
