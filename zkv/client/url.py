"""Client URLs: `zkv://h1:7400,h2:7400/bucket?timeout=2`.

Owns: the grammar of a URL and its defaults. Must not know: connections.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import parse_qsl, unquote

from zkv.errors import ConfigError

SCHEME: Final = "zkv://"
DEFAULT_URL: Final = "zkv://127.0.0.1:7400"
DEFAULT_PORT: Final = 7400
DEFAULT_BUCKET: Final = "default"
DEFAULT_TIMEOUT: Final = 5.0
#: remaining time on the wire is bounded, so a longer wait could not be told to a node
TIMEOUT_MAX: Final = 60.0

_HOST: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?\.?\Z")
_IPV6: Final = re.compile(r"[0-9A-Fa-f:.]+(?:%[A-Za-z0-9]+)?\Z")


@dataclass(frozen=True, slots=True)
class Target:
    """What a URL says: addresses as `host:port` (IPv6 in brackets), bucket, overall timeout in seconds."""

    addresses: tuple[str, ...]
    bucket: str = DEFAULT_BUCKET
    timeout: float = DEFAULT_TIMEOUT

    @property
    def url(self) -> str:
        """A URL that says the same."""
        path = "" if self.bucket == DEFAULT_BUCKET else f"/{self.bucket}"
        query = "" if self.timeout == DEFAULT_TIMEOUT else f"?timeout={self.timeout:g}"
        return f"{SCHEME}{','.join(self.addresses)}{path}{query}"


def parse(url: str | Sequence[str] | None = None) -> Target:
    """A URL, several (their addresses together; the rest from the first), or None for $ZKV_URL or the default.

    Raises: ConfigError that names the part that is wrong and what would be accepted.
    """
    if url is None:
        url = os.environ.get("ZKV_URL") or DEFAULT_URL
    if isinstance(url, str):
        return _parse_one(url)
    targets = [_parse_one(one) for one in url]
    if not targets:
        raise ConfigError(f"an empty list of URLs; expected at least one, such as {DEFAULT_URL}")
    addresses = dict.fromkeys(address for target in targets for address in target.addresses)
    return Target(tuple(addresses), targets[0].bucket, targets[0].timeout)


def target_of(url: str | Sequence[str] | None, bucket: str | None, timeout: float | None) -> Target:
    """What the arguments of connect say; bucket and timeout win over the URL's. Raises: ConfigError."""
    target = parse(url)
    if bucket is not None:
        if not bucket or "/" in bucket:
            raise ConfigError(f"bucket={bucket!r}: a bucket has a name, without slashes")
        target = replace(target, bucket=bucket)
    if timeout is not None:
        target = replace(target, timeout=check_timeout(timeout))
    return target


def check_timeout(timeout: float) -> float:
    """Raises: ConfigError for a wait that is endless, negative or longer than a node could be told of."""
    if type(timeout) not in (int, float) or not 0 < timeout <= TIMEOUT_MAX:
        raise ConfigError(f"timeout={timeout!r}: expected seconds, above 0 and up to {TIMEOUT_MAX:g}")
    return float(timeout)


def _parse_one(url: str) -> Target:
    if not url.startswith(SCHEME):
        raise ConfigError(
            f"{url!r} is no client URL: expected {SCHEME}HOST:PORT[,HOST:PORT...][/BUCKET][?timeout=SECONDS]"
        )
    rest, _, query = url[len(SCHEME) :].partition("?")
    hosts, _, path = rest.partition("/")
    if "@" in hosts:
        raise ConfigError(f"{url!r}: a URL carries no user or password")
    addresses = dict.fromkeys(_address(host, url) for host in hosts.split(","))
    timeout = DEFAULT_TIMEOUT
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name != "timeout":
            raise ConfigError(f"{url!r}: unknown parameter {name!r}; the one there is is timeout")
        try:
            timeout = check_timeout(float(value))
        except ValueError:
            raise ConfigError(
                f"{url!r}: timeout={value!r}: expected seconds, above 0 and up to {TIMEOUT_MAX:g}"
            ) from None
    bucket = unquote(path) or DEFAULT_BUCKET
    if "/" in bucket:
        raise ConfigError(f"{url!r}: a bucket's name has no slash")
    return Target(tuple(addresses), bucket, timeout)


def _address(text: str, url: str) -> str:
    if text.startswith("["):
        host, bracket, after = text[1:].partition("]")
        if not bracket or not _IPV6.match(host) or (after and not after.startswith(":")):
            raise ConfigError(f"{url!r}: {text!r} is no IPv6 address; expected [::1]:7400")
        return f"[{host}]:{_port(after[1:], url) if after else DEFAULT_PORT}"
    host, colon, port = text.partition(":")
    if ":" in port:
        raise ConfigError(f"{url!r}: {text!r}: an IPv6 address stands in brackets, as in [::1]:7400")
    if not _HOST.match(host):
        raise ConfigError(f"{url!r}: {text!r} is no HOST:PORT")
    return f"{host}:{_port(port, url) if colon else DEFAULT_PORT}"


def _port(text: str, url: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 65535):
        raise ConfigError(f"{url!r}: {text!r} is no port; expected 1 to 65535")
    return int(text)
