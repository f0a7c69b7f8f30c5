"""What an answer about one item means to a client: final, worth another try elsewhere, or unknown; and which error says so.

Owns: the tables status -> verdict and status -> error. Must not know: requests in flight, retries themselves, sockets.

Invariant: an item that some node may have carried out never ends in an error that claims otherwise.
Source: 30-replication, requests (three outcomes); counterexamples 6 and 12.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from typing import Final

from zkv import errors
from zkv.core.messages import Refused, Status
from zkv.errors import ZkvError

#: further tries after refusals that waiting rarely mends; what waiting does mend is retried to the deadline
TRIES_MAX: Final = 4


class Verdict(Enum):
    FINAL = auto()  # the same everywhere
    ELSEWHERE = auto()  # certainly not applied; another node may say yes
    PATIENT = auto()  # the same, worth trying to the deadline
    UNKNOWN = auto()  # may live somewhere; may be tried elsewhere only marked `again`
    UNKNOWN_FINAL = auto()  # may live somewhere, and the answer is worth more to the caller than another try


class Failure:
    """The last word about an item that is not ok. status None: refused with the code of an error class."""

    __slots__ = ("code", "details", "got", "message", "required", "status")

    def __init__(
        self,
        status: Status | None,
        required: int = 0,
        got: int = 0,
        code: str = "",
        message: str = "",
        details: dict[str, int] | None = None,
    ) -> None:
        self.status = status
        self.required = required
        self.got = got
        self.code = code
        self.message = message
        self.details = details or {}


PUT_VERDICTS: Final = {
    Status.UNAVAILABLE: Verdict.ELSEWHERE,
    Status.QUORUM_NOT_MET: Verdict.UNKNOWN_FINAL,
    Status.DEADLINE: Verdict.UNKNOWN,
    Status.OVERLOADED: Verdict.PATIENT,
    Status.TOO_LARGE: Verdict.FINAL,
    Status.INVALID_KEY: Verdict.FINAL,
    Status.NO_SUCH_BUCKET: Verdict.FINAL,
    Status.DISK_FULL: Verdict.ELSEWHERE,
    Status.CORRUPT: Verdict.FINAL,
    Status.ROW_VERSION: Verdict.PATIENT,
    Status.UNSYNCED: Verdict.ELSEWHERE,
    Status.NOT_REPLICA: Verdict.PATIENT,
    Status.TOO_OLD: Verdict.UNKNOWN,
    Status.STORE_FAILED: Verdict.UNKNOWN,
    Status.EXPIRED: Verdict.PATIENT,
}

#: a get changes nothing, so nothing about it is unknown
GET_VERDICTS: Final = PUT_VERDICTS | {
    Status.QUORUM_NOT_MET: Verdict.ELSEWHERE,
    Status.DEADLINE: Verdict.PATIENT,
    Status.CORRUPT: Verdict.ELSEWHERE,
    Status.TOO_OLD: Verdict.ELSEWHERE,
    Status.STORE_FAILED: Verdict.ELSEWHERE,
}

#: the node and this client disagree about who holds what: ask for the topology before the next try
STALE_STATUSES: Final = frozenset({Status.ROW_VERSION, Status.NOT_REPLICA})

_STATUS_OF_CODE: Final = {
    "Unavailable": Status.UNAVAILABLE,
    "Overloaded": Status.OVERLOADED,
    "DeadlineExceeded": Status.EXPIRED,
}


def failure_of_refusal(refused: Refused) -> Failure:
    """A whole message refused, as the failure of each of its items."""
    details = refused.details
    required, got = details.get("required", 0), details.get("alive", details.get("got", 0))
    return Failure(_STATUS_OF_CODE.get(refused.code), required, got, refused.code, refused.message, details)


def error_of(failure: Failure, *, unknown: bool = False) -> ZkvError:
    """The error for one item. unknown: an earlier try of it may have been carried out."""
    if failure.status is None:
        error = _refusal(failure)
    else:
        error = _ERRORS[failure.status](failure)
    if unknown and error.definite:
        last = f"the outcome of an earlier try is unknown; the last answer was: {error}"
        if failure.status is Status.UNAVAILABLE:
            return errors.QuorumNotMet(last, required=failure.required, got=failure.got)
        return errors.DeadlineExceeded(last)
    return error


def _refusal(failure: Failure) -> ZkvError:
    kind = getattr(errors, failure.code, None)
    if not isinstance(kind, type) or not issubclass(kind, ZkvError):
        return errors.ProtocolError(f"a node refused with {failure.code!r}: {failure.message}")
    return kind(failure.message)


def _unavailable(failure: Failure) -> ZkvError:
    return errors.Unavailable(failure.message, required=failure.required, alive=failure.got)


def _too_large(failure: Failure) -> ZkvError:
    if failure.got > failure.required > 0:
        return errors.TooLarge(
            f"the value has {failure.got} bytes, the bucket's limit is {failure.required}; nothing was written"
        )
    return errors.TooLarge("the value, or the key's set of siblings, is over its limit; nothing was written")


def _overloaded(failure: Failure) -> ZkvError:
    return errors.Overloaded(failure.message, retry_after=failure.details.get("retry_after_ms", 0) / 1000)


_ERRORS: Final[dict[Status, Callable[[Failure], ZkvError]]] = {
    Status.UNAVAILABLE: _unavailable,
    Status.QUORUM_NOT_MET: lambda f: errors.QuorumNotMet(required=f.required, got=f.got),
    Status.DEADLINE: lambda f: errors.DeadlineExceeded(f"{f.got} of {f.required} replicas answered in time"),
    Status.OVERLOADED: _overloaded,
    Status.TOO_LARGE: _too_large,
    Status.INVALID_KEY: lambda f: errors.InvalidKey("the node refused the key"),
    Status.NO_SUCH_BUCKET: lambda f: errors.NoSuchBucket("the cluster has no such bucket"),
    Status.DISK_FULL: lambda f: errors.DiskFull("the node has no space left; nothing was written"),
    Status.CORRUPT: lambda f: errors.CorruptData("the stored copies of the key do not verify"),
    Status.ROW_VERSION: lambda f: errors.Unavailable("the node and this client disagree about who holds the key"),
    Status.UNSYNCED: lambda f: errors.Unavailable(
        "too few replicas may answer reads: some lost data and are not repaired yet", required=f.required, alive=f.got
    ),
    Status.NOT_REPLICA: lambda f: errors.Unavailable("the node that was asked does not hold the key"),
    Status.TOO_OLD: lambda f: errors.DeadlineExceeded(
        "the node no longer remembers this request: its outcome is unknown"
    ),
    Status.STORE_FAILED: lambda f: errors.StorageFailed(
        "the node's store failed while it wrote: the outcome is unknown"
    ),
    Status.EXPIRED: lambda f: errors.DeadlineExceeded("no time was left when the node took up the request"),
}
