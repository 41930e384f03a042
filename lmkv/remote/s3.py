"""Chunks as objects of an S3-compatible store, by obstore (the ``object_store`` crate).

A chunk is one object, with the bytes of a chunk's file. It is put on the condition that there is
none yet, so that of several engines that computed the same one wins; large ones in parts. It is
read in ranges, several at once, straight behind one another into its slab.
"""

import asyncio
import ctypes
import os
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

from lmkv._C import RemoteResult, fill
from lmkv.errors import ConfigError
from lmkv.remote.store import Done, Item, Place, RemoteError

try:
    import obstore
    from obstore.exceptions import AlreadyExistsError, BaseError
    from obstore.store import S3Store as ObjectStore
except ImportError as error:
    raise ConfigError(f"remote s3:// needs obstore ({error}): pip install 'lmkv[s3]'") from None

# A range that is read by itself, and a part that is written by itself.
PART_BYTES = 8 << 20

# Objects above this are put in parts, for which there is no condition: they are looked for first.
SINGLE_PUT_BYTES = 64 << 20

# Parts of one object on their way at once.
PARTS_AT_ONCE = 4

QUESTIONS_AT_ONCE = 64

# For each request, and for all its retries together: what takes longer is computed sooner.
CONNECT_SECONDS = 2
REQUEST_SECONDS = 20
RETRY_SECONDS = 20

_DEFAULTS = {"virtual_hosted_style_request": "false"}

# To hash every chunk for the request's signature is most of what a client costs. A chunk has
# checksums of its own, and TLS keeps others out; without TLS it is signed.
_UNSIGNED = "unsigned_payload"

# What an endpoint may be called, in the options and in the environment.
_ENDPOINTS = (
    "endpoint", "endpoint_url", "aws_endpoint", "aws_endpoint_url", "aws_endpoint_url_s3",
)  # fmt: skip


def object_store(place: Place) -> ObjectStore:
    """Obstore's client. Raises ConfigError for options that it does not take.

    ``place.options``: those of object_store's ``AmazonS3ConfigKey`` (``endpoint``, ``region``,
    ``virtual_hosted_style_request``, ...) and of its ``ClientConfigKey`` (``allow_http``,
    ``allow_invalid_certificates``, ``proxy_url``, ...). Credentials come from the standard chain:
    the environment, a web identity, the metadata service; with boto3 also its profiles.
    """
    client = {"connect_timeout": f"{CONNECT_SECONDS}s", "timeout": f"{REQUEST_SECONDS}s"}
    config = dict(_DEFAULTS)
    for name, value in place.options.items():
        (client if name in _CLIENT_OPTIONS else config)[name.lower()] = value
    named = [config.get(name, "") for name in _ENDPOINTS]
    named += [os.environ.get(name.upper(), "") for name in _ENDPOINTS]
    if not any(endpoint.lower().startswith("http://") for endpoint in named):
        config.setdefault(_UNSIGNED, "true")
    try:
        return ObjectStore(
            place.host,
            config=config,  # type: ignore[arg-type]
            client_options=client,  # type: ignore[arg-type]
            retry_config={
                "max_retries": 3,
                "backoff": {
                    "init_backoff": timedelta(milliseconds=50),
                    "max_backoff": timedelta(seconds=2),
                    "base": 2,
                },
                "retry_timeout": timedelta(seconds=RETRY_SECONDS),
            },
            credential_provider=_profile(),
        )
    except (BaseError, ValueError, TypeError) as error:
        raise ConfigError(f"remote_options: {_first_line(error)}") from None


class S3Store:
    """See ``RemoteStore``."""

    def __init__(self, place: Place) -> None:
        """As ``object_store``."""
        self._store = object_store(place)

    def register(self, address: int, size: int) -> None:
        """Nothing to do."""

    def exists(self, names: Sequence[str]) -> list[bool]:
        async def ask_all() -> list[bool]:
            some = asyncio.Semaphore(QUESTIONS_AT_ONCE)  # a connection each

            async def ask(name: str) -> bool:
                async with some:
                    return await self._exists(name)

            return await asyncio.gather(*map(ask, names))

        try:
            return asyncio.run(ask_all())
        except (BaseError, OSError) as error:
            raise RemoteError(_first_line(error)) from None

    async def _exists(self, name: str) -> bool:
        try:
            await obstore.head_async(self._store, name)
        except FileNotFoundError:
            return False
        return True

    def get(self, items: Sequence[Item], done: Done) -> None:
        asyncio.run(self._all((self._get(item) for item in items), items, done))

    def put(self, items: Sequence[Item], done: Done) -> None:
        asyncio.run(self._all((self._put(item) for item in items), items, done))

    async def _all(self, calls: Any, items: Sequence[Item], done: Done) -> None:
        async def one(call: Awaitable[tuple[RemoteResult, str]], item: Item) -> None:
            try:
                result, why = await call
            except FileNotFoundError:
                result, why = RemoteResult.MISSING, ""
            except (BaseError, OSError, ValueError) as error:
                result, why = RemoteResult.FAILED, _first_line(error)
            done(item, result, why)

        await asyncio.gather(*(one(call, item) for call, item in zip(calls, items, strict=True)))

    async def _get(self, item: Item) -> tuple[RemoteResult, str]:
        first = min(PART_BYTES, item.bytes)
        rest = range(first, item.bytes, PART_BYTES)
        tasks = [asyncio.ensure_future(self._range(item, begin)) for begin in rest]
        try:
            answer = await obstore.get_async(self._store, item.name, options={"range": (0, first)})
            if (size := answer.meta["size"]) != item.bytes:
                return RemoteResult.BAD, f"it has {size} bytes, not {item.bytes}"
            fill(item.address, first, await answer.bytes_async())
            await asyncio.gather(*tasks)
        finally:
            # Nothing may be written to the buffer once it was said to be left alone.
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return RemoteResult.DONE, ""

    async def _range(self, item: Item, begin: int) -> None:
        size = min(PART_BYTES, item.bytes - begin)
        part = await obstore.get_range_async(self._store, item.name, start=begin, length=size)
        fill(item.address + begin, size, part)

    async def _put(self, item: Item) -> tuple[RemoteResult, str]:
        if await self._exists(item.name):
            return RemoteResult.THERE, ""
        body = memoryview((ctypes.c_char * item.bytes).from_address(item.address)).cast("B")
        try:
            if item.bytes <= SINGLE_PUT_BYTES:
                await obstore.put_async(
                    self._store, item.name, body, mode="create", use_multipart=False
                )
            else:
                await obstore.put_async(
                    self._store,
                    item.name,
                    body,
                    use_multipart=True,
                    chunk_size=PART_BYTES,
                    max_concurrency=PARTS_AT_ONCE,
                )
        except AlreadyExistsError:
            return RemoteResult.THERE, ""
        return RemoteResult.DONE, ""

    def remove(self, name: str) -> RemoteResult:
        try:
            obstore.delete(self._store, name)
        except FileNotFoundError:
            return RemoteResult.MISSING
        except (BaseError, OSError) as error:
            raise RemoteError(_first_line(error)) from None
        return RemoteResult.DONE

    def close(self) -> None:
        """Nothing to do: connections go with the object."""


_CLIENT_OPTIONS = frozenset(
    {
        "allow_http",
        "allow_invalid_certificates",
        "connect_timeout",
        "http1_only",
        "http2_only",
        "pool_idle_timeout",
        "pool_max_idle_per_host",
        "proxy_ca_certificate",
        "proxy_url",
        "timeout",
        "user_agent",
    }
)


def _profile() -> Any:
    """boto3's credentials, if it is there and has some; else the chain that is built in."""
    with suppress(ImportError, ValueError, OSError):
        from boto3 import Session
        from obstore.auth.boto3 import Boto3CredentialProvider

        session = Session()
        if session.get_credentials() is not None:
            return Boto3CredentialProvider(session)
    return None


def _first_line(error: BaseException) -> str:
    """Obstore's messages go on with dumps of requests, for developers."""
    return str(error).split("\n", 1)[0][:300]
