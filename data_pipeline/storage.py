"""Reads files from local paths, http(s), and every other address that fsspec opens.

A *place* is a local path or an address with "://": https://, s3://, gs://, hf://, memory://, and fsspec's chains
such as simplecache::https://. Temporary errors of an address are retried. An address that stays unreachable is a
ConnectionError, which is never counted as a bad sample.
"""

from __future__ import annotations

import os
import posixpath
import time
from pathlib import Path

from data_pipeline.config import check_address

ATTEMPTS, FIRST_WAIT = 6, 0.2
"""Attempts to read an address, and seconds before the second one; each wait is twice the last: 6 s in all."""
CONNECT_SECONDS, READ_SECONDS = 10, 60
"""Time limits of http: for connecting, and for the next bytes."""
_RETRYABLE = (408, 425, 429)  # HTTP statuses below 500


def is_local(place: str | Path) -> bool:
    return "://" not in str(place)


def join(place: str | Path, name: str) -> str:
    """Returns the place of `name`, which is relative to `place`, or absolute, or an address."""
    if not is_local(name):
        return name
    if is_local(place):
        return os.path.join(place, name)
    scheme, _, path = str(place).partition("://")
    return f"{scheme}://{posixpath.normpath(posixpath.join(path, name))}"


def read_bytes(place: str | Path) -> bytes:
    """Returns the whole file; raises OSError if it does not exist or cannot be reached (ConnectionError)."""
    return Path(place).read_bytes() if is_local(place) else _fetch(str(place))


def read_range(place: str | Path, start: int, length: int) -> bytes:
    """Returns `length` bytes from `start` on; fewer where the file ends before.

    Raises:
        OSError: the file does not exist, or cannot be reached (ConnectionError).
        ValueError: the server sends whole files only.
    """
    if is_local(place):
        with open(place, "rb", buffering=0) as file:
            return os.pread(file.fileno(), length, start)
    data = _fetch(str(place), start, start + length)
    if len(data) > length:  # reading on would transfer each shard once for every sample
        folder = str(place).removesuffix(posixpath.basename(place))
        raise ValueError(
            f"{place}: asked for {length} bytes, the server sent {len(data)}: it ignores Range requests; serve "
            f"the shards with nginx, Caddy or an object store, copy them to this machine, or give "
            f"simplecache::{folder}, which copies each shard when it is first read"
        )
    return data


def _fetch(place: str, start: int | None = None, end: int | None = None) -> bytes:
    import aiohttp
    import fsspec

    check_address(place)
    options = {}
    if place.startswith(("http://", "https://")):
        limits = aiohttp.ClientTimeout(sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)
        options = {"client_kwargs": {"timeout": limits}}
    files, path = fsspec.url_to_fs(place, **options)
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(FIRST_WAIT * 2 ** (attempt - 1))
        try:
            return files.cat_file(path, start=start, end=end)
        except FileNotFoundError:
            raise
        except aiohttp.ClientResponseError as error:
            if error.status == 416:  # the file ends before `start`
                return b""
            problem = error
            if error.status < 500 and error.status not in _RETRYABLE:
                break
        except (aiohttp.ClientError, OSError) as error:
            problem = error
    raise ConnectionError(f"{place} cannot be read: {problem!r}; run the same command again when it can")
