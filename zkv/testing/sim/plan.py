"""What one seed stands for: every option, every operation and every fault, drawn before anything runs.

Owns: ranges and weights, the plain form that is saved and shrunk. Must not know: how anything is carried out.

Swarm: each seed allows a random subset of the faults, so that rare combinations are not drowned by common ones. Because all is drawn first,
a plan with operations or faults left out is again a plan. Source: reliability reference, 3.1.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass, field
from typing import Any, Final

FORMAT: Final = 2
FAULTS: Final = (
    "kill", "power", "blackout", "pause", "cut", "isolate", "bridge", "ring", "halves", "flap", "wipe", "clone", "restore",
    "full", "short", "eio", "slow", "clock", "reset", "relapse", "mute",
)  # fmt: skip
#: (milliseconds, kind, numbers that say whom and how long)
Fault = list[Any]
#: (client, kind, keys, number of the operation, has one writer, strict, level, durable)
Operation = list[Any]


@dataclass(slots=True)
class Plan:
    seed: int
    nodes: int
    fsync: str
    bucket: str
    clients: int
    keys: int
    batch_max: int
    delay_ms: float
    loss: float
    duplicate: float
    replay: float
    sync_ms: float
    wal_bytes: int
    think_ms: float
    allowed: list[str]
    operations: list[Operation] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    #: (client, node): as long as there are faults, this one never gets a connection to that one
    unreached: list[list[int]] = field(default_factory=list)
    #: as long as there are faults, a node is at work so long after each turn; what arrives meanwhile is one turn's work
    busy_ms: float = 0.0

    def options(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if k not in ("operations", "faults", "unreached")} | {
            "operations": len(self.operations),
            "faults": len(self.faults),
            "unreached": [f"c{client}-n{node}" for client, node in self.unreached],
        }

    def line(self) -> str:
        return " ".join(f"{k}={','.join(v) if isinstance(v, list) else v}" for k, v in self.options().items())

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=None, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        tree = json.loads(text)
        if tree.pop("format") != FORMAT:
            raise ValueError("a plan of another version of the simulator")
        return cls(**tree)


def draw(seed: int, operations: int = 200) -> Plan:
    dice = random.Random(f"plan {seed}")
    lossy = dice.random() < 0.5
    allowed = [name for name in FAULTS if dice.random() < 0.4]
    plan = Plan(
        seed=seed,
        nodes=dice.choice((3, 3, 3, 4, 5)),
        fsync=dice.choice(("group", "group", "group", "interval", "never")),
        bucket=dice.choice(("strict", "strict", "default", "both")),
        clients=dice.randint(1, 4),
        keys=dice.choice((1, 2, 3, 6)),
        batch_max=dice.choice((1, 1, 2, 4)),
        delay_ms=dice.choice((0.2, 1, 5, 20)),
        loss=dice.choice((0.0, 0.01, 0.05, 0.2)) if lossy else 0.0,
        duplicate=dice.choice((0.0, 0.02, 0.1, 0.3)),
        replay=dice.choice((0.0, 0.0, 0.02, 0.1)),
        sync_ms=dice.choice((0.5, 2, 10)),
        wal_bytes=dice.choice((4096, 16384, 65536)),
        think_ms=dice.choice((1, 5, 20)),
        allowed=allowed,
    )
    # half of all seeds, by a dice of its own: the rest of what a seed draws does not hang on it
    plan.busy_ms = random.Random(f"busy {seed}").choice((0.0, 0.0, 2.0, 8.0)) * plan.delay_ms
    # else every client asks the same coordinator for a key: everything; about half; one node alone
    missing = dice.choice((0.0, 0.45, 1.0))
    for client in range(plan.clients):
        nodes = dice.sample(range(plan.nodes), plan.nodes - 1)
        plan.unreached += [[client, node] for node in sorted(nodes) if dice.random() < missing]
    plan.operations = [_operation(plan, dice, number) for number in range(operations)]
    length_ms = int(operations / plan.clients * (plan.think_ms + 4 * plan.delay_ms + 2 * plan.sync_ms)) + 200
    if allowed:
        count = dice.randint(2, max(4, min(32, length_ms // 80)))
        plan.faults = sorted(_fault(plan, dice, length_ms) for _ in range(count))
    return plan


def _operation(plan: Plan, dice: random.Random, number: int) -> Operation:
    client = dice.randrange(plan.clients)
    kind = dice.choices(("put", "context", "delete", "get", "empty", "follow"), (5, 4, 1, 4, 1, 1))[0]
    count = min(plan.keys, dice.randint(1, plan.batch_max))
    keys = sorted(dice.sample(range(plan.keys), count))
    solo = plan.bucket != "default" and dice.random() < 0.3
    strict = plan.bucket == "strict" or (plan.bucket == "both" and (solo or dice.random() < 0.5))
    level = dice.choices((None, 1, "all"), (16, 1, 1))[0]
    durable = plan.fsync != "group" and dice.random() < 0.3
    return [client, kind, keys, number, solo, strict, level, durable]


def _fault(plan: Plan, dice: random.Random, length_ms: int) -> Fault:
    kind = dice.choice(plan.allowed)
    return [
        dice.randrange(length_ms),
        kind,
        dice.randrange(plan.nodes),
        dice.randrange(plan.nodes),
        dice.choice((20, 100, 400, 1500, 3000)),
        dice.randrange(1 << 30),
    ]
