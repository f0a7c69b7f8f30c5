"""Commands whose names are taken and which do not exist yet: each is refused with a sentence on what to do today.

Owns: those names and sentences. Must not know: the commands that exist.
"""

from __future__ import annotations

from typing import Final

_MEMBERSHIP = (
    "membership of a running cluster cannot change yet: start a new one with --initial, then export and import"
)
_PLANS = "there are no plans to act on yet, because membership of a running cluster cannot change yet"

RESERVED: Final[dict[str, str]] = {
    "scan": "ordered scans do not exist yet; `zkv export` lists every key, unordered",
    "top": "does not exist yet; `zkv status` shows one moment",
    "bucket": "buckets cannot be created or changed yet; every cluster has `default` and `strict`",
    "join": _MEMBERSHIP,
    "leave": _MEMBERSHIP,
    "remove": _MEMBERSHIP,
    "replace": _MEMBERSHIP,
    "weight": "a weight can only be given at the first start yet: `zkv serve --weight`",
    "plan": _PLANS,
    "commit": _PLANS,
    "clear": _PLANS,
    "pause": _PLANS,
    "resume": _PLANS,
    "jobs": _PLANS,
    "drain": "does not exist yet; SIGTERM drains a node",
    "recover": "does not exist yet; a majority of the first nodes must come back with their data",
    "autoscale": _MEMBERSHIP,
    "repair": "background repair does not exist yet; a get repairs the keys that it reads, and `zkv export` reads all",
    "backup": "does not exist yet; `zkv export` writes all records, and a stopped node's directory can be copied",
    "restore": "does not exist yet; `zkv import` reads what `zkv export` wrote",
    "compact": "does not exist yet; the log only grows in this version",
    "debug": "does not exist yet; run `zkv serve --log-level debug`",
    "init": "does not exist yet; the first `zkv serve` makes the data directory",
    "keygen": "keys and encryption do not exist yet; stay on loopback, or use --insecure-network on a test network",
    "config": "does not exist yet; `zkv serve` checks its configuration before it does anything",
}
