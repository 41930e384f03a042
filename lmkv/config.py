"""Every setting of lmkv: one frozen dataclass, validated in one place.

Settings come from vLLM's ``kv_connector_extra_config`` and from ``LMKV_<NAME>`` environment
variables; the former win. ``docs/configuration.md`` holds the table that ``settings_table``
renders from this dataclass.
"""

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any

from lmkv.errors import ConfigError
from lmkv.remote.store import Place
from lmkv.values import (
    HostMemory,
    format_size,
    one_of,
    parse_age,
    parse_bool,
    parse_host_memory,
    parse_int,
    parse_number,
    parse_options,
    parse_path,
    parse_paths,
    parse_percent,
    parse_remote,
    parse_size,
    parse_text,
    split_paths,
)

ENVIRONMENT_PREFIX = "LMKV_"

# LMKV_* variables that are read elsewhere (setup.py) and are no settings.
NOT_SETTINGS = frozenset({"LMKV_CMAKE_ARGS"})

# What Kubernetes tells every pod of a Service that is named "lmkv".
_KUBERNETES = re.compile(
    r"LMKV_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT|PORT_\d+_(TCP|UDP|SCTP)(_[A-Z]+)?)"
)

# Seconds; the core has the same bounds.
LONGEST_LOAD_TIMEOUT = 86_400
LONGEST_AGE = 10 * 366 * 86_400


def _setting(
    parse: Callable[[object], Any],
    doc: str,
    unit: str = "",
    from_text: Callable[[str], object] = str,
    **default: Any,
) -> Any:
    """``from_text``: what a text of the environment is, before it is parsed."""
    metadata = {"parse": parse, "unit": unit, "doc": doc, "from_text": from_text}
    return field(metadata=metadata, **default)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All settings, parsed and checked. Raises ConfigError when one cannot work.

    Each field carries its unit and meaning; ``settings_table`` prints them.
    """

    path: tuple[str, ...] = _setting(
        parse_paths,
        "Directory that holds the chunks; engines that name the same one share them. Required, "
        "absolute; `~` is expanded. It is created when it is missing. A list of "
        'directories, `["/nvme0/kv", "/nvme1/kv"]`, spreads the chunks evenly over them; in the '
        'environment they are separated by ":" as in `PATH`, so that one with a ":" in its name '
        "can only be given in a list. Engines that share name the same set by the same paths: a "
        "path decides which chunks lie there.",
        from_text=split_paths,
    )
    chunk_tokens: int = _setting(
        parse_int,
        "Tokens in one chunk, the unit of key, file and I/O. A multiple of vLLM's block size. "
        "Engines share only with engines that use the same number.",
        unit="tokens",
        default=256,
    )
    host_memory: HostMemory = _setting(  # noqa: RUF009 - as immutable as the others
        parse_host_memory,
        "Host memory of each worker (rank) for chunks on their way to and from the disk; what "
        "is not in flight keeps recent chunks, so that they are loaded without the disk. With a "
        "GPU it is taken at the start, without one as it is used and 256 MiB ahead. "
        '`"shared:64GiB"`: so much for all engines of this user on this node together, each of '
        "which finds there what any of them stored or loaded; what is there stays when they end "
        "(`docs/node-memory.md`).",
        unit="bytes",
        default=HostMemory(2 << 30),
    )
    arena_directory: str = _setting(
        parse_path,
        "Where host memory that is shared lies: a tmpfs or hugetlbfs that all those engines see.",
        default="/dev/shm",
    )
    capacity: int = _setting(
        parse_size,
        "What everything below `path` may take together, whoever wrote it: above it chunks are "
        "evicted. 0: no limit but `free_space_floor`. Of engines with different limits over one "
        "directory the smallest wins. With several directories it holds for each.",
        unit="bytes",
        default=0,
    )
    free_space_floor: float = _setting(
        parse_percent,
        "How much of the filesystem stays free: below that nothing is stored, and no more is "
        "evicted than this engine has stored since it started. 0 switches it off. With several "
        "directories it holds for each.",
        unit="percent",
        default=5.0,
    )
    eviction: str = _setting(
        one_of("reuse", "lru"),
        "Which chunks go first: `reuse` learns from the directory how soon chunks like this one "
        "were used again, `lru` takes the least recently used. Either takes a prompt's end before "
        "its beginning.",
        default="reuse",
    )
    max_age: float = _setting(
        parse_age,
        'Chunks that were not used for so long are removed, whatever room there is: `"30d"`. 0: '
        "none is.",
        unit="seconds",
        default=0.0,
    )
    io_engine: str = _setting(
        one_of("auto", "io_uring", "threads"),
        "How files are read and written. `auto` takes io_uring where the kernel allows it and "
        "direct I/O works, and threads elsewhere; the log says which and why.",
        default="auto",
    )
    direct_io: str = _setting(
        one_of("auto", "on", "off"),
        "O_DIRECT. `auto` uses it where the filesystem accepts it; `on` refuses to start where "
        "it does not.",
        default="auto",
    )
    shared: str = _setting(
        one_of("auto", "yes", "no"),
        "Whether other hosts have the directory mounted too. Then a chunk's data is on the server "
        "before its file gets its name, and an error that comes late (no space, a quota) is seen. "
        "`auto` goes by the kind of filesystem: yes for NFS, SMB, Ceph, Lustre and others of "
        "the network, for FUSE, and for what is unknown; the log says which and why.",
        default="auto",
    )
    file_mode: str = _setting(
        one_of("private", "group"),
        "Who may use the files: `private`, this user alone (files 0600, directories 0700), or "
        "`group`, all members of the directory's group, who may then read, renew and evict "
        "(files 0660, directories 2770, whatever the umask is). Set the same everywhere.",
        default="private",
    )
    io_threads: int = _setting(
        parse_int,
        "I/O threads of each worker, for each directory.",
        unit="threads",
        default=1,
    )
    load_policy: str = _setting(
        one_of("auto", "always", "never"),
        "Whether what is found is loaded: `auto` loads what a request is done sooner with, by what "
        "loads and prefills have taken lately, and gives up a load that turns out to be slow; "
        "`always` loads all that is found, `never` nothing.",
        default="auto",
    )
    load_timeout: float = _setting(
        parse_number,
        "A load that takes longer is given up, and its tokens are computed. 0: by how fast loads "
        "are, from 5 s to a minute; it is for a directory that hangs, not for one that is slow.",
        unit="seconds",
        default=0.0,
    )
    transfer: str = _setting(
        one_of("auto", "copy_engine", "kernel_staged", "kernel_mapped"),
        "How blocks are copied between a GPU and host memory: by its copy engines, by a kernel "
        "and a buffer on the GPU, or by a kernel alone. `auto` goes by the size of the pieces "
        "(`lmkv bench transfer --calibrate` measures from which on); the log says which and why. "
        "Engines on the CPU have one way only.",
        default="auto",
    )
    remote: str = _setting(
        parse_remote,
        "A tier behind `path`, for nodes that share no directory: `s3://bucket/prefix` (any "
        "S3-compatible store), `mooncake://master:port` (a Mooncake Store) or `file:///directory` "
        "(one that other nodes share, behind a local disk). What is stored goes there, too, and "
        'what `path` lacks is loaded from there and kept. `""`: none (`docs/remote.md`).',
        default="",
    )
    remote_options: tuple[tuple[str, str], ...] = _setting(
        parse_options,
        'Of its client, as a mapping: `{"endpoint": "https://...", "region": "..."}`; in the '
        "environment as JSON. Credentials come from the client's own environment and are refused "
        "here.",
        default=(),
    )
    remote_writes: str = _setting(
        one_of("write_behind", "write_through", "on_second_use"),
        "When a chunk goes to the remote tier: `write_behind`, once it is stored, with nobody "
        "waiting; `write_through`, where a store has ended when both have it; `on_second_use`, "
        "when it is loaded from memory or `path`.",
        default="write_behind",
    )
    remote_capacity: int = _setting(
        parse_size,
        "What everything below a remote `file:///` directory may take, as `capacity`. Of other "
        "remote tiers it is theirs to say.",
        unit="bytes",
        default=0,
    )
    remote_bandwidth: int = _setting(
        parse_size,
        "What a worker may send to a remote engine in a second, and what it may receive, on "
        "average. 0: no limit. Not of a directory.",
        unit="bytes/s",
        default=0,
    )
    store_generated: bool = _setting(
        parse_bool,
        "Store chunks that hold generated tokens too, not only those of the prompt.",
        default=False,
    )
    store_tail: bool = _setting(
        parse_bool,
        "Store the whole blocks behind a prompt's last whole chunk as one shorter chunk, so "
        "that the end of a prompt, and a prompt shorter than a chunk, hit too.",
        default=True,
    )
    namespace: str = _setting(
        parse_text,
        "Any text of your own; engines share only with engines that use the same. Change it to "
        "start afresh, or to keep tenants apart.",
        default="",
    )

    def __post_init__(self) -> None:
        for name, low, high in (
            ("chunk_tokens", 1, 1 << 20),
            ("host_memory", 1 << 20, 1 << 50),
            ("capacity", 0, 1 << 60),
            ("free_space_floor", 0, 90),
            ("remote_capacity", 0, 1 << 60),
            ("remote_bandwidth", 0, 1 << 60),
            ("io_threads", 1, 64),
            ("load_timeout", 0, LONGEST_LOAD_TIMEOUT),
            ("max_age", 0, LONGEST_AGE),
        ):
            value = getattr(self, name)
            if isinstance(value, HostMemory):
                value = value.bytes
            if not low <= value <= high:
                raise ConfigError(f"{name}: must be between {low} and {high}, not {value}")
        place = self.remote_place
        if place is not None and place.directory in self.path:
            raise ConfigError(f"remote: {place.directory} is in path, and cannot be behind itself")
        if len(self.namespace) > 256 or not self.namespace.isprintable():
            raise ConfigError("namespace: must be at most 256 printable characters")

    @property
    def remote_place(self) -> Place | None:
        """Where the remote tier is, if there is one."""
        return Place.parse(self.remote, dict(self.remote_options)) if self.remote else None

    @classmethod
    def from_sources(
        cls, extra_config: Mapping[str, object], environ: Mapping[str, str]
    ) -> "Config":
        """Settings from ``extra_config``, then from ``environ``, then the defaults.

        Raises ConfigError for an unknown name (naming the nearest known one), a value that
        cannot be read, or a missing ``path``. Reads nothing else and does not block.
        """
        known = {spec.name: spec for spec in fields(cls)}
        values: dict[str, Any] = {}
        for variable, text in environ.items():
            if not variable.startswith(ENVIRONMENT_PREFIX) or variable in NOT_SETTINGS:
                continue
            if _KUBERNETES.fullmatch(variable):
                continue
            name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
            if name not in known or variable != _environment_name(name):
                raise _unknown(variable, [_environment_name(name) for name in known])
            values[name] = _parse(known[name], variable, known[name].metadata["from_text"](text))
        for name, value in extra_config.items():
            if name not in known:
                raise _unknown(name, list(known))
            values[name] = _parse(known[name], name, value)
        if "path" not in values:
            raise ConfigError(
                'path: missing; name a directory with "kv_connector_extra_config": '
                '{"path": "/directory"} or the environment variable LMKV_PATH'
            )
        return cls(**values)

    def differences(self, other: "Config") -> list[str]:
        """What ``other`` has set otherwise, as ``"name: mine, not theirs"``."""
        return [
            f"{spec.name}: {_shown(mine)}, not {_shown(theirs)}"
            for spec in fields(self)
            if (mine := getattr(self, spec.name)) != (theirs := getattr(other, spec.name))
        ]

    def blocks_per_chunk(self, block_tokens: int) -> int:
        """Blocks of ``block_tokens`` tokens in one chunk; ConfigError unless a whole number."""
        count, rest = divmod(self.chunk_tokens, block_tokens)
        if rest or not count:
            near = max(count, 1) * block_tokens
            raise ConfigError(
                f"chunk_tokens: {self.chunk_tokens} is no multiple of vLLM's block size "
                f"({block_tokens} tokens); use {near}, or change --block-size"
            )
        return count


def settings_table() -> str:
    """A Markdown table of all settings, for the documentation."""
    rows = ["| key | environment | default | unit | meaning |", "|---|---|---|---|---|"]
    for spec in fields(Config):
        default = "(required)" if spec.default is MISSING else f"`{_default_text(spec)}`"
        unit, doc = spec.metadata["unit"], spec.metadata["doc"]
        environment = _environment_name(spec.name)
        rows.append(f"| `{spec.name}` | `{environment}` | {default} | {unit} | {doc} |")
    return "\n".join(rows) + "\n"


def _default_text(spec: "Field[Any]") -> str:
    default: Any = spec.default
    if spec.metadata["parse"] is parse_size:
        return format_size(default) if default else "0"
    if isinstance(default, float):
        return f"{default:g}"
    if isinstance(default, bool):
        return str(default).lower()
    return ("{}" if default == () else str(default)) or '""'


def _shown(value: object) -> str:
    if isinstance(value, HostMemory):
        return str(value)
    return ", ".join(map(repr, value)) if isinstance(value, tuple) else repr(value)


def _environment_name(name: str) -> str:
    return ENVIRONMENT_PREFIX + name.upper()


def _parse(spec: "Field[Any]", name: str, value: object) -> Any:
    try:
        return spec.metadata["parse"](value)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None


def _unknown(name: str, known: list[str]) -> ConfigError:
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
    return ConfigError(f"{name}: unknown setting; did you mean {nearest}?")
