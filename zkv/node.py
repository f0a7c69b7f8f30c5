"""The composition root of a node: settings, real clock, real sockets, real files, and the loop that drives them.

Owns: what is opened in which order, what a directory must match, start and stop. Must not know: any rule of the system.

Ports are bound before anything is created. The directory says who the node is; flags that contradict it are refused. SIGTERM and SIGINT
drain: no new requests, what is open is finished, the log is closed clean. A second signal stops at once. A store that fails stops the node.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from types import FrameType
from typing import TYPE_CHECKING, Any, ClassVar, Final

from zkv import counters, figures, logs, notify
from zkv.codec import records, value
from zkv.config import NodeSettings
from zkv.core import effects as fx
from zkv.core import events as ev
from zkv.core.bootstrap import ACTIVE, NEW, Bootstrap, Identity
from zkv.core.clock import HybridClock
from zkv.core.initial import initial_hash, initial_text, parse_initial
from zkv.core.members import Member
from zkv.core.node_state import NodeState
from zkv.core.request_memory import RequestMemory
from zkv.core.ring import position_of
from zkv.core.topology import TopologyDocument, first_epoch
from zkv.core.view import View
from zkv.driver import Driver
from zkv.errors import ConfigError, DiskFull, StorageFailed
from zkv.health import Health
from zkv.ids import NodeId
from zkv.storage.files import FileSystem, RealFiles
from zkv.storage.helpers import HelperProcess
from zkv.storage.log_store import LogStore
from zkv.storage.manifest import Manifest
from zkv.storage.opening import LogOptions
from zkv.storage.record_table import RecordTable
from zkv.storage.recovery import Recovery
from zkv.storage.sealed import SealedStore
from zkv.storage.sealed_opening import open_sealed
from zkv.storage.upkeep import Upkeep

if TYPE_CHECKING:
    from zkv.web import server as web

log = logging.getLogger("zkv.node")

#: longest sleep of the loop: its pulse is what the watchdog and /livez feel
POLL_NS_MAX: Final = 1_000_000_000
DRAIN_NS_MAX: Final = 10_000_000_000
#: twice the longest deadline: nobody retries a request that is older
FORGETFUL_NS: Final = 120_000_000_000
#: Young objects are searched for cycles now and then; the old ones, millions of records without cycles, never: that would stop the node for
#: seconds. A cycle that lives through one search is lost memory, and nothing on the request path makes one.
GC_THRESHOLDS: Final = (100_000, 1_000_000, 1_000_000)
_LEVELS: Final = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class RealClock:
    """The machine's clocks."""

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()

    def wall_ns(self) -> int:
        return time.time_ns()


class Node:
    """One node. `run` blocks until it is stopped."""

    driver_type: ClassVar[type[Driver]] = Driver

    def __init__(self, settings: NodeSettings, files: FileSystem | None = None) -> None:
        """Binds, opens and recovers. files: default the real ones. Raises: AddressInUse, ConfigError, StoreLocked and other StorageErrors; nothing stays open then."""
        from zkv.transport.loop import ZmqTransport  # with it comes asyncio, which an embedded store does without

        settings.validate()
        self.settings = settings
        self._stop = threading.Event()
        self._stop_now = False
        self._files = files or RealFiles()
        self._health = Health(time.monotonic_ns)
        self._turn_durations = counters.Histogram()
        #: what other threads want to know, and who waits for it
        self._asked: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._closed = False
        self._web: web.WebServer | None = None
        self._notify: notify.Notify | None = None
        self._log: LogStore | None = None
        self._sealed: SealedStore | None = None
        #: one for seals, one for merges
        self._helpers: list[HelperProcess] = []
        self._transport = ZmqTransport(
            listen=settings.listen, peer_listen=settings.peer_listen, gossip_listen=settings.gossip_listen
        )
        try:
            self._show()
            self._open()
        except BaseException:
            self._let_go()
            if self._log is not None:
                self._log.close()
            self._close_outside()
            raise

    # --- seen from outside ---

    def _show(self) -> None:
        """Health and the like from here on: reading a long log is something that a watcher should see."""
        address = self.settings.http_address
        if address is not None:
            from zkv.web import server as web
            from zkv.web.app import THREADS, WebApp
            from zkv.web.token import read_token

            file = self.settings.http_token_file
            token = None if file is None else read_token(file)
            app = WebApp(self._health, ask=self.ask, status=self._status, families=self._families, token=token)
            self._web = web.WebServer(web.bind(address), app, threads=THREADS)
        if os.environ.get("NOTIFY_SOCKET"):
            self._notify = notify.Notify(self._health, notify.watchdog_ns(os.environ, os.getpid()))

    def ask(self, question: Callable[[], Any], timeout_s: float) -> Any:
        """Run `question` on the loop's thread, between two turns. From any other thread. Raises: TimeoutError, and what it raised."""
        if self._closed:
            raise TimeoutError("the node has stopped")
        future: Future[Any] = Future()
        self._asked.append((future, question))
        self._transport.wake()
        try:
            return future.result(timeout_s)
        except CancelledError:
            raise TimeoutError("the node has stopped") from None
        finally:
            future.cancel()

    def _answer(self) -> None:
        while self._asked:
            future, question = self._asked.popleft()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(question())
                except Exception as error:  # whoever asked hears of it; the loop goes on
                    future.set_exception(error)

    def _status(self) -> dict[str, object]:
        return self._state.inspect.status()

    def _families(self) -> list[counters.Family]:
        assert self._log is not None
        return figures.families(self._state, self._driver, self._table, self._log, self._upkeep, self._turn_durations)

    def _close_outside(self) -> None:
        self._closed = True
        while self._asked:
            self._asked.popleft()[0].cancel()
        if self._web is not None:
            self._web.close()
        self._transport.close()
        if self._notify is not None:
            self._notify.close()

    # --- opening ---

    def _open(self) -> None:
        settings = self.settings
        options = LogOptions(
            fsync=settings.fsync,
            fsync_interval_ns=settings.fsync_interval_ms * 1_000_000,
            file_bytes=settings.wal_bytes,
            reserve_bytes=settings.reserve_bytes,
        )
        self._log, recovery = LogStore.open(
            settings.data,
            self._files,
            options=options,
            create=True,
            on_wake=self._transport.wake,
            accept=self._check_directory,
        )
        self._health.watch_store(lambda: self._log.busy_since_ns if self._log is not None else 0)
        self._document = self._own_cluster(self._log)
        seed, shift = self._document.hash_seed, 64 - (self._document.partitions.bit_length() - 1)
        self._sealed = open_sealed(
            self._files,
            str(settings.data),
            self._log,
            recovery,
            partitions=self._document.partitions,
            hash_seed=seed,
            cache_bytes=settings.cache_bytes,
            note=self._note,
        )
        for text in recovery.notes:
            logs.event(log, logging.WARNING, "recovery", text)
        self._judge_synced(self._log, recovery)
        extra = self._log.manifest.extra
        member = next(mb for mb in self._document.members if mb.name == settings.name)
        memory = RequestMemory()
        self._table = RecordTable(self._log.open_id, memory, lambda key: position_of(key, seed) >> shift, self._sealed)
        self._load(recovery)
        view = View(
            node=member.node_id,
            name=member.name,
            store=self._log.manifest.store_id,
            open_id=self._log.open_id,
            memory=memory,
            clock=HybridClock(max(self._table.stamp_high, self._log.manifest.high_water_stamp)),
            heartbeat_timeout_ns=settings.heartbeat_timeout_ms * 1_000_000,
        )
        view.now_ns = time.monotonic_ns()
        if self._power_was_lost(self._log, recovery) or self._log.manifest.wal_floor > 1:
            # sealed records do not tell which requests they came from
            view.forgetful_until_ns = view.now_ns + FORGETFUL_NS
        phase = extra["phase"]
        if phase == ACTIVE:
            view.adopt(self._document, value.document_bytes(self._document))
            view.unsynced = self._log.manifest.unsynced
        others = {mb.node_id: mb for mb in self._document.members if mb.node_id != member.node_id}
        stores = {NodeId(int(node, 16)): store for node, store in extra["stores"].items()}
        identity = Identity(
            node=member.node_id,
            name=member.name,
            store=view.store,
            open_id=self._log.open_id,
            initial=extra["initial"],
            initial_hash=extra["initial_hash"],
        )
        bootstrap = Bootstrap(identity, {n: mb.name for n, mb in others.items()}, phase=phase, stores=stores)
        self._state = NodeState(view, bootstrap, heartbeat_interval_ns=settings.heartbeat_interval_ms * 1_000_000)
        sealer, merger = HelperProcess(self._transport.wake), HelperProcess(self._transport.wake)
        self._helpers = [sealer, merger]
        self._upkeep = Upkeep(
            self._files, str(settings.data), self._log, self._table, self._sealed, sealer, merger, self._note
        )
        self._driver = self.driver_type(
            self._state,
            self._table,
            self._log,
            self._transport,
            RealClock(),
            cluster=int.from_bytes(self._document.cluster_id[:8], "big"),
            fsync=settings.fsync,
            adopt=self._adopt,
            mark_synced=self._mark_synced,
            note=self._note,
            upkeep=self._upkeep,
        )
        self._state.inspect.counters = lambda: counters.document(self._families())
        self._transport.connect({n: (mb.peer_address, mb.gossip_address) for n, mb in others.items()})

    def _note(self, level: str, event: str, text: str) -> None:
        logs.event(log, _LEVELS[level], event, text)

    def _check_directory(self, manifest: Manifest | None) -> None:
        """Refuses flags that contradict the directory, or each other, while nothing has been changed or created."""
        self._plan_cluster(manifest)

    def _own_cluster(self, store: LogStore) -> TopologyDocument:
        """Epoch 1 of the cluster that this directory belongs to, or is about to help found."""
        document, member, extra = self._plan_cluster(store.manifest)
        if extra.get("phase") == ACTIVE and self.settings.initial:
            logs.event(log, logging.INFO, "initial_ignored", "the directory is a member already: --initial is ignored")
        if extra.get("phase") != ACTIVE:
            store.update_manifest(
                cluster_id=document.cluster_id, node_id=member.node_id, node_name=member.name, extra=extra
            )
        return document

    def _plan_cluster(self, manifest: Manifest | None) -> tuple[TopologyDocument, Member, dict[str, Any]]:
        """(epoch 1, this node in it, `extra` of the manifest). Raises: ConfigError where flags and directory contradict each other."""
        settings = self.settings
        extra: dict[str, Any] = dict(manifest.extra) if manifest else {}
        founded = extra.get("phase") == ACTIVE
        if manifest and manifest.node_name and manifest.node_name != settings.name:
            raise ConfigError(
                f"{settings.data} belongs to node {manifest.node_name!r}, not {settings.name!r}: "
                f"start it with --name {manifest.node_name}, or choose another --data"
            )
        initial = settings.initial or extra.get("initial") or self._own_initial()
        cluster_name = settings.cluster_name or extra.get("cluster_name") or "zkv"
        partitions = extra["partitions"] if founded else settings.partitions
        listed = parse_initial(initial)
        digest = initial_hash(cluster_name, listed, partitions)
        if founded and digest != extra["initial_hash"]:
            raise ConfigError(
                f"{settings.data} belongs to cluster {extra['cluster_name']!r} founded by {extra['initial']}; it cannot be started as a "
                f"member of {cluster_name!r} with {initial}"
            )
        document = first_epoch(cluster_name, listed, partitions=partitions)
        member = next((mb for mb in document.members if mb.name == settings.name), None)
        if member is None:
            raise ConfigError(f"--initial does not list this node: {settings.name!r} is not in {initial}")
        if member.address != settings.advertise:
            raise ConfigError(
                f"--initial says {settings.name}@{member.address}, but this node is to be reached at {settings.advertise}: "
                f"make --listen or --advertise and the list agree"
            )
        self._check_labels(member)
        if not founded:
            extra = {
                "initial": initial,
                "initial_hash": digest,
                "cluster_name": cluster_name,
                "partitions": partitions,
                "phase": NEW,
                "stores": {},
            }
        return document, member, extra

    def _power_was_lost(self, store: LogStore, recovery: Recovery) -> bool:
        """Whether records may be gone that an earlier life wrote and did not sync: it stopped uncleanly, and the machine has started since."""
        extra = dict(store.manifest.extra)
        boot, before = _boot_id(), extra.get("boot")
        if boot != before:
            store.update_manifest(extra=extra | {"boot": boot})
        return not recovery.created and not recovery.clean_shutdown and boot != before

    def _judge_synced(self, store: LogStore, recovery: Recovery) -> None:
        """Whether this store may answer reads, beyond what the log itself could say. docs/decisions/004."""
        extra = dict(store.manifest.extra)
        damaged = recovery.degraded or extra.get("damaged", False)
        if damaged and not extra.get("damaged"):
            extra["damaged"] = True
            store.update_manifest(extra=extra)
        nobody_else = len(self._document.members) == 1
        if store.manifest.unsynced and not damaged and (extra["phase"] == NEW or nobody_else):
            if nobody_else and extra["phase"] == ACTIVE:
                logs.event(
                    log,
                    logging.WARNING,
                    "unclean_stop",
                    "stopped uncleanly without fsync per ack: what was acknowledged in the last moments may be gone",
                )
            store.update_manifest(unsynced=False)

    def _check_labels(self, member: Member) -> None:
        """Labels of a listed node stand in the list, where all see the same; a flag that says otherwise would be ignored."""
        settings = self.settings
        usual = NodeSettings()
        for label in ("dc", "rack", "weight"):
            given, listed = getattr(settings, label), getattr(member, label)
            if given not in (listed, getattr(usual, label)):
                raise ConfigError(
                    f"--{label} {given} is not what the list of the cluster says of {member.name}: {listed}; put labels into the list, "
                    f"as in {member.name}@{member.address}/{label}={given}"
                )

    def _own_initial(self) -> str:
        """The list of a cluster of one, with this node's labels."""
        settings = self.settings
        (own,) = parse_initial(settings.own_initial)
        own = own._replace(dc=settings.dc, rack=settings.rack, label=settings.host, weight=settings.weight)
        return initial_text([own])

    def _load(self, recovery: Recovery) -> None:
        started_ns = time.monotonic_ns()
        gc.disable()  # nothing of what is built here is garbage
        try:
            for batch in recovery.batches():
                if batch.codec not in records.BLOCK_CODECS:
                    raise ConfigError(
                        f"{recovery.path}: a log batch of unknown kind {batch.codec}: written by a newer version"
                    )
                self._table.load(records.block_from_log(batch.body))
        finally:
            gc.enable()
        self._spare_collector()
        if len(self._table):
            ms = (time.monotonic_ns() - started_ns) // 1_000_000
            keys, last = len(self._table), recovery.last_seq
            text = f"recovered {keys} keys from {last} log records in {ms} ms"
            logs.event(log, logging.INFO, "recovered", text, keys=keys, log_records=last, duration_ms=ms)

    def _spare_collector(self) -> None:
        """This process holds records and little else."""
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)

    def _adopt(self, adopt: fx.Adopt) -> ev.Adopted:
        """On disk before anything else is said: this directory is a founding member, or one that lost its data."""
        assert self._log is not None
        extra = dict(self._log.manifest.extra)
        extra["phase"] = ACTIVE
        extra["stores"] = {f"{node:016x}": store for node, store in adopt.stores.items()}
        self._log.update_manifest(extra=extra, unsynced=adopt.unsynced or self._log.manifest.unsynced)
        if adopt.unsynced:
            logs.event(
                log,
                logging.ERROR,
                "data_lost",
                "this directory is new but the cluster is not: the data of this node was lost; it takes writes and refuses reads",
            )
        cluster_name = extra["cluster_name"]
        logs.event(
            log,
            logging.INFO,
            "epoch_active",
            f"epoch 1 of cluster {cluster_name!r} is active",
            cluster=cluster_name,
            epoch=1,
        )
        return ev.Adopted(self._document, value.document_bytes(self._document), self._log.manifest.unsynced)

    def _mark_synced(self) -> None:
        assert self._log is not None
        extra = dict(self._log.manifest.extra)
        extra.pop("damaged", None)
        self._log.update_manifest(unsynced=False, extra=extra)
        logs.event(log, logging.INFO, "synced", "compared with all other replicas: this node answers reads again")

    # --- running ---

    def run(self) -> None:
        """Serve until `stop` or a signal. Raises: StorageFailed, after which the process must end."""
        in_main_thread = threading.current_thread() is threading.main_thread()
        before = {number: signal.signal(number, self._on_signal) for number in _SIGNALS} if in_main_thread else {}
        settings = self.settings
        text = f"serving {settings.name} on {settings.listen}, {settings.data}, pid {os.getpid()}, http {settings.http}"
        fields: dict[str, int | str] = {
            "node": settings.name,
            "listen": settings.listen,
            "pid": os.getpid(),
            "http": settings.http,
        }
        logs.event(log, logging.INFO, "serving", text, trace=False, **fields)
        try:
            self._loop()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def stop(self) -> None:
        """Drain and return from `run`. From any thread."""
        self._stop.set()
        self._transport.wake()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stop_now = self._stop.is_set()
        self.stop()

    def _loop(self) -> None:
        driver, transport = self._driver, self._transport
        drain_until_ns = 0
        try:
            while True:
                now_ns = time.monotonic_ns()
                if self._stop.is_set():
                    if not drain_until_ns:
                        self._state.view.draining = True
                        drain_until_ns = now_ns + DRAIN_NS_MAX
                        self._health.set_not_ready(self._state.inspect.not_ready())
                        if self._notify is not None:
                            self._notify.stopping()
                        logs.event(log, logging.INFO, "stopping", "stopping: finishing what is open")
                    if self._stop_now or driver.idle or now_ns >= drain_until_ns:
                        break
                inbox = transport.poll(min(driver.next_wakeup_ns() - now_ns, POLL_NS_MAX))
                began_ns = time.monotonic_ns()
                self._health.beat(began_ns)
                driver.turn(inbox)
                self._after_turn(began_ns)
        except StorageFailed:
            text = "the store failed and the node stops; its log is read again at the next start"
            logs.event(log, logging.CRITICAL, "store_failed", text, trace=True)
            raise
        finally:
            self._close()

    def _after_turn(self, began_ns: int) -> None:
        view = self._state.view
        if view.document is None or view.unsynced or view.draining or self._health.not_ready:
            self._health.set_not_ready(self._state.inspect.not_ready())
        if self._asked:
            self._answer()
        self._turn_durations.observe(time.monotonic_ns() - began_ns)

    def _close(self) -> None:
        assert self._log is not None
        try:
            try:
                self._log.update_manifest(high_water_stamp=self._state.view.clock.high)
            except (StorageFailed, DiskFull) as error:
                text = f"the highest stamp was not noted (the log holds it too): {error}"
                logs.event(log, logging.ERROR, "stamp_not_noted", text)
            self._log.close()
        except (StorageFailed, DiskFull) as error:
            logs.event(log, logging.CRITICAL, "unclean_close", f"the log could not be closed cleanly: {error}")
        finally:
            self._let_go()
            self._close_outside()

    def _let_go(self) -> None:
        """Jobs under way are begun anew at the next start; what they had written is in tmp/."""
        for helper in self._helpers:
            helper.cancel()
            helper.stop()
        if self._sealed is not None:
            self._sealed.close()


def _boot_id() -> str:
    """Names one start of this machine; another one after each restart. Empty where the kernel does not say: then never the same twice."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return f"unknown {os.urandom(8).hex()}"


_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
