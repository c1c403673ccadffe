"""Configs of an OpenAI-compatible server and of a judge behind one (standard library only)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from data_pipeline.config import check_address, check_at_least


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """An OpenAI-compatible server, and how long to wait for it."""

    base_url: str = "http://127.0.0.1:8000/v1"
    """Where the server listens."""
    model: str = ""
    """Name the server knows the model by; empty takes the only one it serves."""
    api_key_env: str = ""
    """Environment variable that holds the key; empty sends none. The key itself is never written anywhere."""
    concurrency: int = 64
    """Requests in flight at once."""
    requests_per_second: float = 0.0
    """Most requests that begin in a second; 0 sets no limit."""
    timeout: float = 6_000.0
    """Seconds one request may take."""
    retries: int = 3
    """Times a request is repeated after an error of the server's own, a timeout or an unreadable reply."""
    unavailable_timeout: float = 600.0
    """Seconds to wait for a server that is down or busy before giving up; the same command continues."""

    def __post_init__(self) -> None:
        if not self.base_url.startswith(("http://", "https://")):
            raise ValueError(
                f"base_url={self.base_url!r} must begin with http:// or https://; it usually ends in /v1"
            )
        check_address(self.base_url)
        if not 1 <= self.concurrency <= 1_000:
            raise ValueError(f"concurrency={self.concurrency} must be between 1 and 1000")
        if self.timeout <= 0:
            raise ValueError(f"timeout={self.timeout:g} must be above 0 seconds")
        check_at_least(self, requests_per_second=0, retries=0, unavailable_timeout=0)


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """A served model that judges what the rules of the answer checker find wrong; without a base_url there is none."""

    base_url: str = ""
    """Where the judge's server listens; empty asks none."""
    model: str = ""
    """The judge's model; empty takes the only one that is served."""
    api_key_env: str = ""
    """Environment variable that holds the judge's key."""
    concurrency: int = 64
    """Requests in flight at once."""
    requests_per_second: float = 0.0
    """Most requests that begin in a second; 0 sets no limit."""
    timeout: float = 600.0
    """Seconds one request may take."""
    retries: int = 3
    """Times a request is repeated after an error of the server's own, a timeout or an unreadable reply."""
    unavailable_timeout: float = 600.0
    """Seconds to wait for a server that is down or busy."""
    when_down: Literal["stop", "count"] = "stop"
    """After these seconds stop, and the same command continues; or count the answer as not judged, and go on."""

    def __post_init__(self) -> None:
        _ = self.server  # checks the fields

    @property
    def server(self) -> ServerConfig | None:
        if not self.base_url:
            return None
        return ServerConfig(
            base_url=self.base_url,
            model=self.model,
            api_key_env=self.api_key_env,
            concurrency=self.concurrency,
            requests_per_second=self.requests_per_second,
            timeout=self.timeout,
            retries=self.retries,
            unavailable_timeout=self.unavailable_timeout,
        )
