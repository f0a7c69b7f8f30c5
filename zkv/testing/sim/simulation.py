"""One seed from its plan to its verdict; and the shrinking of a plan that failed.

Owns: the phases of a run, the carrying out of faults, the result. Must not know: what a rule of the product says.

Phases: the cluster forms; operations under faults; a core is healed and must answer; all is healed and must converge. Then nothing may be
left open anywhere. Source: reliability reference, 3.
"""

from __future__ import annotations

import dataclasses
import gc
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from zkv.codec.records import block_from_log
from zkv.core.topology import ring_of
from zkv.ids import bucket_of
from zkv.testing.sim.clients import TIMEOUT_NS, Done, SimClient
from zkv.testing.sim.disk import Names
from zkv.testing.sim.judge import Judge, Violation
from zkv.testing.sim.plan import Fault, Plan, draw
from zkv.testing.sim.world import MS, SECOND, SimNode, World

FORM_NS: Final = 20 * SECOND
WORK_NS: Final = 300 * SECOND
LIVE_NS: Final = 60 * SECOND
SHRINK_RUNS: Final = 400
SLOW_BEFORE_NS: Final = 100 * MS


@dataclass(slots=True)
class Result:
    """What became of one plan. `rule` is empty when every promise held."""

    plan: Plan
    digest: str = ""
    rule: str = ""
    text: str = ""
    story: list[str] = field(default_factory=list)
    fired: Counter[str] = field(default_factory=Counter)
    operations: int = 0
    events: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)

    @property
    def ok(self) -> bool:
        return not self.rule

    @property
    def command(self) -> str:
        return f"zkv sim --seed {self.plan.seed} --ops {len(self.plan.operations)}"

    def explain(self) -> str:
        lines = [f"seed {self.plan.seed}: {self.text}", f"reproduce: {self.command}", *self.story]
        return "\n".join(lines)


class Simulation:
    """`Simulation(seed).run()` runs one seed; `Simulation(plan=...)` runs a plan as it is."""

    def __init__(self, seed: int = 0, *, operations: int = 200, plan: Plan | None = None) -> None:
        self.plan = draw(seed, operations) if plan is None else plan
        self.judge = Judge(self.plan)
        self.world = World(self.plan, self.judge)
        self.judge.now_ns = lambda: self.world.now_ns
        self._copies: dict[int, Names] = {}
        self._dice = random.Random(f"faults {self.plan.seed}")
        by_client: list[list[Any]] = [[] for _ in range(self.plan.clients)]
        for operation in self.plan.operations:
            by_client[operation[0]].append(operation)
        self.clients = [SimClient(self.world, i, queue, self.judge) for i, queue in enumerate(by_client)]
        self._outcomes: Counter[str] = Counter()

    def run(self) -> Result:
        result = Result(self.plan)
        collecting = gc.isenabled()
        gc.disable()  # a run is short; what it leaves is collected at once at its end
        try:
            self._form()
            self._work()
            self._heal()
            self._converge()
        except Violation as broken:
            result.rule, result.text = broken.rule, str(broken)
            result.story = self.judge.tell_story(broken.key)
        except AssertionError as broken:
            result.rule, result.text = "assertion", f"assertion: {broken!r}"
            result.story = self.judge.tell_story(b"")
        finally:
            if collecting:
                gc.enable()
        world = self.world
        result.digest = world.trace.hexdigest()
        result.fired = world.fired
        for node in world.nodes:
            for fault, count in node.files.struck.items():
                result.fired[f"disk {fault}"] += count
        result.operations = len(self.plan.operations)
        result.events = world.events
        return result

    # --- phases ---

    def _demand(self, rule: str, what: str, ns: int, done: Callable[[], bool]) -> None:
        if not self.world.run(self.world.now_ns + ns, done):
            raise Violation(rule, f"{what} within {ns // SECOND} s")

    def _form(self) -> None:
        world = self.world
        for node in world.nodes:
            node.start()
        self._demand("liveness", "the cluster did not form", FORM_NS, lambda: self._settled(world.nodes))

    def _settled(self, nodes: list[SimNode]) -> bool:
        """All of these serve, are linked and may answer reads."""
        return all(
            n.up
            and not n.paused
            and n.view.ring is not None
            and not n.view.unsynced
            and len(n.linked) >= len(nodes) - 1
            for n in nodes
        )

    def _work(self) -> None:
        world = self.world
        world.calm = False
        start_ns = world.now_ns
        for fault in self.plan.faults:
            world.at(start_ns + fault[0] * MS, self._fault, fault)
        for client in self.clients:
            world.after(1, client.next)
        self._demand("outcomes", "a call did not end", WORK_NS, lambda: all(client.finished for client in self.clients))

    def _heal(self) -> None:
        """A core without one node answers again, where the dead one is not needed to make another whole."""
        world = self.world
        world.calm = True
        world.mend_all()
        for node in world.nodes:
            node.files.full = False
            node.files.armed.clear()
            node.slow_ns = node.skew_ns = 0
            node.muted = False
            node.resume(node.life)
        spare = self._dice.choice(world.nodes)
        core = [node for node in world.nodes if node is not spare]
        if not self._all_whole():
            return
        spare.die()
        for node in core:
            node.start()
        self._demand("liveness", "a healed core did not come back", LIVE_NS, lambda: self._settled(core))
        self._ask_all("liveness", None, only=3)

    def _converge(self) -> None:
        world = self.world
        for node in world.nodes:
            node.start()
        self._demand(
            "convergence", "a healed cluster did not become whole", LIVE_NS, lambda: self._settled(world.nodes)
        )
        self._rest()
        if not self.judge.weak:
            self._ask_all("convergence", None)
        first = self._ask_all("convergence", "all")
        second = self._ask_all("convergence", "all")
        for key, shown in first.items():
            if sorted(shown) != sorted(second[key]):
                raise Violation("convergence", f"read twice: {shown}, {second[key]}", key)
            self._judge_final(key, set(shown))
        self._rest()
        self._compare(list(first))

    def _rest(self) -> None:
        """What is open anywhere ends by its deadline, what is on its way arrives."""
        world = self.world
        nodes = world.nodes
        world.run(world.now_ns + 3 * SECOND, lambda: all(n.driver.idle and not len(n.state.reads) for n in nodes))
        world.run(world.now_ns + SECOND // 2, lambda: False)

    def _judge_final(self, key: bytes, shown: set[bytes]) -> None:
        judge = self.judge
        history = judge.keys[key]
        for write, place in history.writes:
            value = write.values[place]
            if write.outcomes[place] != "ok" or value is None or history.accounted(value, shown):
                continue
            if not judge.excused(write, place):
                text = f"{value!r} was acknowledged, nothing replaced it, and all that is left is {sorted(shown)}"
                raise Violation("durability", text, key)
        for gone in sorted(shown & history.replaced.keys()):
            by, place = history.replaced[gone][0]
            if len(history.minted.get(gone, ())) == 1 and not judge.excused(by, place):
                raise Violation("resurrection", f"{gone!r} was replaced by {by.values[place]!r} and is back", key)

    def _ask_all(self, rule: str, level: int | str | None, only: int = 0) -> dict[bytes, list[bytes]]:
        """What is shown of every key that was ever written, each bucket read as one batch; every key must be answered."""
        answers: dict[bytes, list[bytes]] = {}
        self.clients[0]._operations.clear()
        keys = sorted(self.judge.keys)
        for _, of_bucket in groupby(keys[:only] if only else keys, key=bucket_of):
            left = list(of_bucket)
            for _ in range(5):
                done = self._ask(rule, left, level)
                answers |= {left[i]: shown for i, shown in done.shown.items()}
                left = [key for key in left if key not in answers]
                if not left:
                    break
            else:
                raise Violation(rule, f"a healed cluster does not answer: {done.errors}", left[0])
        return answers

    def _ask(self, rule: str, keys: list[bytes], level: int | str | None) -> Done:
        ended: list[Done] = []

        def on_done(done: Done) -> None:
            self.judge.on_done(done)
            ended.append(done)

        client = self.clients[0]
        client._watch = _Hearing(self.judge, on_done)
        nothing: list[bytes | None] = [None] * len(keys)
        empty: list[set[bytes]] = [set() for _ in keys]
        client.submit("get", bucket_of(keys[0]), keys, nothing, None, empty, -1, level)
        self._demand(rule, f"a get of {keys} did not end", LIVE_NS, lambda: bool(ended))
        client._watch = self.judge
        return ended[0]

    def _compare(self, keys: list[bytes]) -> None:
        """Equal sets on all replicas, sound tables, nothing left open."""
        world = self.world
        ring = ring_of(world.document)
        for key in keys:
            row = ring.row_of(key, 1)
            sets = [world.by_id[node].table.read([key])[0][0] for node in row.replicas]
            for other in sets[1:]:
                if not (other is sets[0] if other is None or sets[0] is None else other.same_as(sets[0])):
                    raise Violation("convergence", f"replicas differ after reads of all: {sets}", key)
        # replicas log the same bytes, and nothing happens any more: what one log told need not be decoded for each of them
        read_block = cache(block_from_log)
        for node in world.nodes:
            node.table.check_invariants()
            node.read_block = read_block
            state = node.state
            left = state.coordinator.open_items, len(state.reads)
            if any(left) or not node.driver.idle:
                raise Violation("bounds", f"{node.name} has open items, reads: {left}, idle: {node.driver.idle}")
            self._replay(node)

    def _replay(self, node: SimNode) -> None:
        """What a restart would find is what is held."""
        held = {key: node.table.read([key])[0][0] for key in sorted(self.judge.keys)}
        node.up = False
        node.files.kill()
        node._begin()
        if node.recovery.corrupt:
            raise Violation("recovery", f"{node.name}: damage that nobody did: {node.recovery.corrupt}")
        for key, before in held.items():
            after = node.table.read([key])[0][0]
            if not (after is before if after is None or before is None else after.same_as(before)):
                raise Violation("recovery", f"{node.name} held {before} and recovers {after}", key)

    # --- faults ---

    def _all_whole(self) -> bool:
        return not any(
            n.wiped or n.lacking or n.files.full or (n.up and (n.view.ring is None or n.view.unsynced))
            for n in self.world.nodes
        ) and (self.plan.fsync == "group" or all(n.up for n in self.world.nodes))

    def _fault(self, fault: Fault) -> None:
        """Carry one out; what cannot be at this moment is left out, and not counted."""
        _, kind, a, b, ms, number = fault
        world = self.world
        if world.calm:  # the time of faults is over
            return
        node, other = world.nodes[a], world.nodes[b]
        dice = random.Random(number)
        ns = ms * MS
        if not self._carry_out(kind, node, other, ns, dice):
            return
        world.fired[kind] += 1
        world.note(kind, a, b, ms)
        self.judge.tell(b"", f"fault: {kind} {node.name} {other.name} {ms} ms")

    def _carry_out(self, kind: str, node: SimNode, other: SimNode, ns: int, dice: random.Random) -> bool:
        world = self.world
        count = len(world.nodes)
        everyone = list(range(count))
        match kind:
            case "kill" if node.up:
                node.die()
                world.after(ns, node.start)
            case "power" if node.up:
                self._lose_power(node)
                world.after(ns, node.start)
            case "blackout":
                if dice.random() < 0.3:
                    self._black_out(ns, dice, None)
                else:  # in the moment in which somebody has got an answer, at times while the disks are slower than the network
                    world.on_read = dice.random() < 0.5
                    for each in world.nodes if world.on_read or dice.random() < 0.5 else ():
                        each.slow_ns = SLOW_BEFORE_NS
                    world.on_answer = partial(self._black_out, ns, dice, dice.choice((0.0, 0.0, 0.5)))
            case "pause" if node.up and not node.paused:
                node.paused = True
                world.after(ns, node.resume, node.life)
            case "cut" if node is not other:
                world.cut([(node.index, other.index)], ns)
            case "isolate":
                rest = [i for i in range(count + len(self.clients)) if i != node.index]
                world.cut([pair for i in rest for pair in ((i, node.index), (node.index, i))], ns)
            case "halves" | "bridge":
                dice.shuffle(everyone)
                middle = everyone.pop() if kind == "bridge" else -1
                one, two = everyone[: len(everyone) // 2], everyone[len(everyone) // 2 :]
                world.cut([p for x in one for y in two if middle not in (x, y) for p in ((x, y), (y, x))], ns)
            case "ring" if count > 3:
                far = [(i, (i + 2) % count) for i in everyone]
                world.cut([p for x, y in far for p in ((x, y), (y, x))], ns)
            case "flap" if node is not other:
                for i in range(4):
                    world.after(i * (ns // 4 + 100 * MS), world.cut, [(node.index, other.index)], ns // 8 + 1)
            case "reset" if node.up:
                self.clients[other.index % len(self.clients)].lost(node.index, node.life)
            case "relapse" if node is not other and self._all_whole() and not self.judge.losses:
                # `other` misses what is written now; then `node` loses what it has, and meets nobody else for a while
                world.cut([p for i in everyone if i != other.index for p in ((i, other.index), (other.index, i))], ns)
                world.after(ns, self._relapse, node, other, ns + 2000 * MS)
            case "wipe" if self._all_whole() and not self.judge.losses:
                self._wipe(node, ns)
            case "clone" if node.up and node.view.ring is not None:
                self._copies[node.index] = node.files.snapshot()
            case "restore" if node.index in self._copies and self._all_whole() and not self.judge.losses:
                node.die()
                node.files.restore(self._copies[node.index])
                self.judge.lost(node, unnoticed=True)
                world.after(ns, node.start)
            case "full" if self._all_whole():
                node.files.full = True
                world.after(ns, setattr, node.files, "full", False)
            case "short" | "eio" if node.up:
                node.files.armed.add(kind)
            case "mute":
                node.muted = True  # longer than a call: whose put reached this node alone goes on and reads it there
                world.after(TIMEOUT_NS + ns, setattr, node, "muted", False)
            case "slow":
                node.slow_ns = ns
                world.after(ns, setattr, node, "slow_ns", 0)
            case "clock":
                node.skew_ns = dice.choice((-288, -5, 5, 288, 315_360_000)) * SECOND
            case _:
                return False
        return True

    def _relapse(self, node: SimNode, other: SimNode, ns: int) -> None:
        world = self.world
        if world.calm or not self._all_whole() or self.judge.losses:
            return
        world.fired["relapse: wiped"] += 1
        pair = (node.index, other.index)
        rest = [i for i in range(len(world.nodes)) if i not in pair]
        world.cut([p for i in rest for j in pair for p in ((i, j), (j, i))], ns)
        self._wipe(node, 20 * MS)

    def _wipe(self, node: SimNode, ns: int) -> None:
        node.die()
        node.files.wipe()
        node.wiped = node.lacking = True
        self.judge.lost(node)
        self.world.after(ns, self._start_wiped, node)

    def _start_wiped(self, node: SimNode) -> None:
        node.wiped = False
        node.start()

    def _black_out(self, ns: int, dice: random.Random, kept: float | None) -> None:
        if self.world.calm:
            return
        for each in self.world.nodes:
            each.slow_ns = 0
            self._lose_power(each, kept)
            self.world.after(ns + dice.randrange(200 * MS), each.start)

    def _lose_power(self, node: SimNode, kept: float | None = None) -> None:
        if self.plan.fsync != "group":
            self.judge.lost(node, unnoticed=True, synced_too=False)
        node.die(power=True, kept=kept)


def run_seed(seed: int, operations: int = 200) -> Result:
    """One of many seeds. What it leaves is collected at once, without a look at all that was there before, which takes as long as
    a tenth of the run."""
    frozen_before = gc.get_freeze_count()
    gc.freeze()
    try:
        return Simulation(seed, operations=operations).run()
    finally:
        gc.collect()
        if not frozen_before:  # else somebody else decides what is looked at
            gc.unfreeze()


class _Hearing:
    """The judge, and somebody who waits for the end of one operation."""

    def __init__(self, judge: Judge, on_done: Callable[[Done], None]) -> None:
        self.on_begin = judge.on_begin
        self.on_try = judge.on_try
        self.on_done = on_done


# --- shrinking ---


def shrink(plan: Plan, rule: str, runs_max: int = SHRINK_RUNS) -> Plan:
    """Leave out operations and faults while the same rule is still broken: halves first, then smaller pieces."""
    runs = 0

    def fails(candidate: Plan) -> bool:
        nonlocal runs
        runs += 1
        return Simulation(plan=dataclasses.replace(candidate)).run().rule == rule

    for name in ("faults", "operations"):
        size = max(1, len(getattr(plan, name)) // 2)
        while size:
            at = 0
            while at < len(getattr(plan, name)) and runs < runs_max:
                items = getattr(plan, name)
                candidate = dataclasses.replace(plan, **{name: items[:at] + items[at + size :]})
                if fails(candidate):
                    plan = candidate
                else:
                    at += size
            size //= 2
    return plan


def save(plan: Plan, directory: Path, name: str) -> Path:
    path = directory / f"{name}.json"
    path.write_text(plan.to_json() + "\n", encoding="utf-8")
    return path
