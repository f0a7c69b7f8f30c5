"""One error tree for the whole of zkv.

Owns: every exception that crosses a module border. Must not know: any other module.

`definite` answers the first question of a caller: True means *certainly not applied*. `retryable` means that the same call may
succeed later without anybody changing it. Each class that has a built-in relative is one (`except TimeoutError` works).
Source: 10-interface of the design; Maelstrom's definite and indefinite errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar


class ZkvError(Exception):
    """Base of all. `code` is the stable name used in JSON output and on the wire."""

    definite: bool = True
    retryable: bool = False
    #: exit code of the command line
    exit_code: ClassVar[int] = 1

    @property
    def code(self) -> str:
        return type(self).__name__


class ConfigError(ZkvError, ValueError):
    """A setting, address or list that cannot work. The message names the option and what would be accepted."""

    exit_code = 78


class InvalidArgument(ConfigError):
    """An argument of a call that no node could honour: a level, a time to live. Nothing was sent."""

    exit_code = 2


class AddressInUse(ZkvError):
    """A port that the node should listen on belongs to another process. Nothing was created."""


class ProtocolError(ZkvError):
    """Bytes that are not what the protocol says; the sender is at fault, nothing was applied."""


class VersionMismatch(ProtocolError):
    """A peer, a client or a file speaks a version that this build does not."""


# --- storage -----------------------------------------------------------------------------------------------------------------


class StorageError(ZkvError):
    """The local store could not do it."""


class CorruptData(StorageError):
    """Checksummed bytes that do not verify. Never the same as absent."""


class DiskFull(StorageError):
    """No space: refused before anything of it was kept. Deletes and reads still work."""

    retryable = True


class StorageFailed(StorageError):
    """An fsync or write failed in a way that leaves the outcome unknown; the store takes nothing more and the node stops."""

    definite = False


class StoreLocked(StorageError):
    """Another process has the directory open."""


# --- requests ----------------------------------------------------------------------------------------------------------------


class RequestError(ZkvError):
    """A request that did not end as `ok`."""


class ConnectFailed(RequestError, ConnectionError):
    """No node of the list could be reached; nothing was sent."""

    retryable = True
    exit_code = 6


class DeadlineExceeded(RequestError, TimeoutError):
    """The overall time ran out. For a put or delete the outcome is unknown."""

    definite = False
    retryable = True
    exit_code = 5


class Unavailable(RequestError):
    """Too few replicas are reachable; refused before anything was written."""

    retryable = True
    exit_code = 4

    def __init__(self, message: str = "", *, required: int = 0, alive: int = 0) -> None:
        super().__init__(message or f"{alive} of {required} required replicas are reachable; nothing was done")
        self.required = required
        self.alive = alive


class QuorumNotMet(RequestError):
    """Fewer replicas answered than asked for. A put that got this far lives on some replica: its outcome is unknown."""

    definite = False
    retryable = True
    exit_code = 5

    def __init__(self, message: str = "", *, required: int = 0, got: int = 0) -> None:
        super().__init__(message or f"{got} of {required} required replicas answered; the outcome is unknown")
        self.required = required
        self.got = got


class Conflict(RequestError):
    """A get found several siblings and no resolver. `values` holds each, `context` covers exactly these."""

    exit_code = 9

    def __init__(self, message: str, *, values: Sequence[Any] = (), context: bytes = b"") -> None:
        super().__init__(message)
        self.values = tuple(values)
        self.context = context


class NotFound(RequestError, KeyError):
    """Raised where a mapping would raise KeyError; elsewhere "not found" is an answer."""

    exit_code = 3

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else "not found"


class TooLarge(RequestError, ValueError):
    """A key's set, a value or a batch over its limit; nothing was written."""


class InvalidKey(RequestError, ValueError):
    """Keys are 1 to 1,024 bytes (text counts as UTF-8)."""

    exit_code = 2


class CodecError(RequestError, ValueError):
    """A value that the bucket's codec cannot write or read."""


class Overloaded(RequestError):
    """The node refuses work that it could not do in time; nothing was applied."""

    retryable = True
    exit_code = 4

    def __init__(self, message: str = "", *, retry_after: float = 0.0) -> None:
        super().__init__(message or f"the node is overloaded; try again in {retry_after:.3f} s")
        self.retry_after = retry_after


class AuthFailed(RequestError, PermissionError):
    """The key or the role does not allow this."""

    exit_code = 7


class NoSuchBucket(RequestError, LookupError):
    """The bucket does not exist; buckets are created by an administrator."""


class Closed(RequestError):
    """The client was closed."""


class Unsupported(RequestError, ValueError):
    """A name that is reserved for later. The message says why and what to use today."""

    exit_code = 2


class BatchError(RequestError):
    """At least one key of a batch is not ok. `.result` holds an outcome per key; `.errors` the failed keys alone."""

    def __init__(self, message: str, *, result: Any = None, errors: Mapping[Any, ZkvError] | None = None) -> None:
        super().__init__(message)
        self.result = result
        self.errors = dict(errors or {})
        self.definite = all(error.definite for error in self.errors.values())
        self.retryable = all(error.retryable for error in self.errors.values())

    @property
    def exit_status(self) -> int:
        """The worst exit code of the failed keys: unknown outcomes before definite ones."""
        codes = {error.exit_code for error in self.errors.values()}
        return 5 if 5 in codes else max(codes, default=1)
