"""Settings of a node: what there is, what each defaults to and why, where a value may come from, and what is refused.

Owns: `NodeSettings`, the names of settings in files and environment, units, addresses as text.
Must not know: who uses a setting, sockets, what lies in the data directory, the parser of the command line.

Precedence, lowest first: built-in, file (TOML), environment (`ZKV_SECTION__KEY`), flags. A key that does not exist is
an error that names the nearest one. Text with units becomes a number once, here.
Invariant: every address of a built `NodeSettings` is set and is HOST:PORT; `validate()` is the one judge of the rest.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
import socket
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from zkv.errors import ConfigError

DEFAULT_PORT: Final = 7400
#: above the client port
HTTP_STEP: Final = 3
FSYNC_MODES: Final = ("group", "interval", "never")
LOG_LEVELS: Final = ("debug", "info", "warning", "error")
LOG_FORMATS: Final = ("text", "json", "journal")
HTTP_OFF: Final = "off"
WAL_BYTES_MIN: Final = 1024 * 1024
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_LABEL = re.compile(r"[A-Za-z0-9._:\[\]-]{0,255}")


@dataclass(slots=True)
class NodeSettings:
    """What one node is told. Empty text means "derive it": construction fills in addresses, name and host."""

    #: default: the hostname, plus the port if it is not 7400, so that several nodes of one machine differ untold
    name: str = ""
    #: a directory next to where `zkv serve` was typed: easy to find, easy to delete
    data: Path = Path("zkv-data")
    #: loopback: open to nobody else until somebody says so
    listen: str = f"127.0.0.1:{DEFAULT_PORT}"
    #: next to the client port, so that one number names a node in firewalls and lists
    peer_listen: str = ""
    gossip_listen: str = ""
    #: what others dial; the same as `listen` unless that is a wildcard or behind translation
    advertise: str = ""
    peer_advertise: str = ""
    gossip_advertise: str = ""
    #: labels for placement; one name for all means "no distinction", which placement treats as a single place
    dc: str = "dc1"
    rack: str = "rack1"
    #: the failure domain that replicas must not share: the advertised host, but on loopback, where all share one
    #: machine anyway, the node's name
    host: str = ""
    #: equal shares unless told
    weight: float = 1.0
    #: empty: alone, or whatever the data directory already is
    initial: str = ""
    cluster_name: str = ""
    #: enough for shares within 5 % at 200 nodes; fixed when a cluster is born
    partitions: int = 1024
    #: an acknowledged write survives power loss; one sync per turn of the loop keeps it affordable
    fsync: str = "group"
    #: with "interval" at most this much time of writes is at risk
    fsync_interval_ms: int = 100
    #: one log file: large enough that switching is rare, small enough to be read again at start in about a second
    wal_bytes: int = 64 * 1024 * 1024
    #: space kept back so that a full disk can still take deletes and finish what it began
    reserve_bytes: int = 64 * 1024 * 1024
    #: memory for records that were read from segments and may be read again
    cache_bytes: int = 64 * 1024 * 1024
    #: two a second cost nothing; three missed ones make a suspect: a pause of garbage collection or disk does not
    heartbeat_interval_ms: int = 500
    heartbeat_timeout_ms: int = 1500
    #: links beyond loopback are neither encrypted nor authenticated yet: somebody has to say that this is known
    insecure_network: bool = False
    #: health, metrics and status for whoever watches this machine: loopback, whatever `listen` says. "off": none
    http: str = ""
    #: holds the bearer token for /v1/*; a must where others can reach `http`
    http_token_file: Path | None = None
    log_level: str = "info"
    #: for a person at a terminal; programs and the journal have theirs
    log_format: str = "text"

    def __post_init__(self) -> None:
        self.data = Path(self.data)
        listen = parse_address(self.listen, "listen")
        public = parse_address(self.advertise, "advertise") if self.advertise else listen
        self.listen, self.advertise = str(listen), str(public)
        for step, link in enumerate(("peer", "gossip"), start=1):
            given = getattr(self, f"{link}_listen")
            bound = parse_address(given, f"{link}_listen") if given else _above(listen, step)
            dialled = getattr(self, f"{link}_advertise")
            if dialled:
                reached = parse_address(dialled, f"{link}_advertise")
            else:
                reached = Address(public.host, bound.port) if given else _above(public, step)
            setattr(self, f"{link}_listen", str(bound))
            setattr(self, f"{link}_advertise", str(reached))
        if not self.http:
            self.http = str(_above(listen, HTTP_STEP)._replace(host="127.0.0.1"))
        elif self.http != HTTP_OFF:
            self.http = str(parse_address(self.http, "http"))
        if not self.name:
            self.name = socket.gethostname() + ("" if listen.port == DEFAULT_PORT else f"-{listen.port}")
        if not self.host:
            self.host = self.name if public.is_loopback else public.host

    @property
    def http_address(self) -> Address | None:
        return None if self.http == HTTP_OFF else parse_address(self.http, "http")

    @property
    def alone(self) -> bool:
        """No list was given: a cluster of one, or a later start of a member."""
        return not self.initial

    @property
    def own_initial(self) -> str:
        """The list that names this node only, with its labels; what `serve` alone boots with."""
        return f"{self.name}@{self.advertise}" + "".join(f"/{key}={value}" for key, value in self._labels.items())

    @property
    def _labels(self) -> dict[str, str]:
        """Those that were set to something else than they would be anyway, as the initial list writes them."""
        plain = NodeSettings(name=self.name, listen=self.listen, advertise=self.advertise)
        ours = {"dc": self.dc, "rack": self.rack, "host": self.host, "weight": f"{self.weight:g}"}
        theirs = {"dc": plain.dc, "rack": plain.rack, "host": plain.host, "weight": f"{plain.weight:g}"}
        return {key: value for key, value in ours.items() if value != theirs[key]}

    def validate(self) -> None:
        """Raise ConfigError for the first setting that cannot work."""
        self._validate_identity()
        self._validate_network()
        _one_of("fsync", self.fsync, FSYNC_MODES)
        _one_of("log_level", self.log_level, LOG_LEVELS)
        _one_of("log_format", self.log_format, LOG_FORMATS)
        self._validate_http()
        if self.fsync_interval_ms < 1:
            raise ConfigError(f"fsync_interval_ms is {self.fsync_interval_ms}; it must be at least 1")
        if self.wal_bytes < WAL_BYTES_MIN:
            raise ConfigError(f"wal_bytes is {self.wal_bytes}; it must be at least {WAL_BYTES_MIN} (1MiB)")
        if self.reserve_bytes < 0:
            raise ConfigError(f"reserve_bytes is {self.reserve_bytes}; it must be 0 or more")
        if self.cache_bytes < 0:
            raise ConfigError(f"cache_bytes is {self.cache_bytes}; it must be 0 or more")
        if self.heartbeat_interval_ms < 10:
            raise ConfigError(f"heartbeat_interval_ms is {self.heartbeat_interval_ms}; it must be at least 10")
        if self.heartbeat_timeout_ms < 2 * self.heartbeat_interval_ms:
            raise ConfigError(
                f"heartbeat_timeout_ms is {self.heartbeat_timeout_ms}; it must be at least twice heartbeat_interval_ms "
                f"({self.heartbeat_interval_ms}), or one lost message makes a node suspect"
            )

    def _validate_identity(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"name {self.name!r}: use 1 to 63 letters, digits, '.', '_' or '-', a letter or digit first (--name)"
            )
        for label, value in (("dc", self.dc), ("rack", self.rack)):
            if not _NAME.fullmatch(value):
                raise ConfigError(f"{label} {value!r}: use 1 to 63 letters, digits, '.', '_' or '-' (--{label})")
        if not _LABEL.fullmatch(self.host):
            raise ConfigError(f"host {self.host!r}: use up to 255 letters, digits, '.', '_', ':' or '-' (--host)")
        if not 0 < self.weight <= 1000:
            raise ConfigError(f"weight is {self.weight}; it must be above 0 and at most 1000 (--weight)")
        if self.partitions < 1 or self.partitions > 65536 or self.partitions & (self.partitions - 1):
            raise ConfigError(f"partitions is {self.partitions}; it must be a power of two from 1 to 65536")
        if self.cluster_name and not _NAME.fullmatch(self.cluster_name):
            raise ConfigError(
                f"cluster_name {self.cluster_name!r}: use 1 to 63 letters, digits, '.', '_' or '-' (--cluster-name)"
            )
        if self.initial and not self.cluster_name:
            raise ConfigError(
                "--initial needs --cluster-name NAME: the name keeps two clusters with the same list apart"
            )
        if self.initial:
            # all nodes must see the same labels, so the list has the say and a flag may only repeat it
            own = next((entry for entry in self.initial.split(",") if entry.strip().startswith(f"{self.name}@")), "")
            for key, value in self._labels.items():
                if f"/{key}={value}/" not in own.strip() + "/":
                    raise ConfigError(
                        f"--{key} {value} is not what --initial says of {self.name!r}: give labels in the list, the "
                        f"same on each node, as in {self.own_initial}"
                    )

    def _validate_network(self) -> None:
        listens = {key: parse_address(getattr(self, key), key) for key in ("listen", "peer_listen", "gossip_listen")}
        for key, address in listens.items():
            if not address.is_numeric:
                raise ConfigError(
                    f"{key} {address}: a socket is bound to a numeric address of this machine, as in "
                    f"127.0.0.1:{address.port}, not to a name"
                )
            if not address.is_loopback and not self.insecure_network:
                raise ConfigError(
                    f"{key} {address} can be reached from other machines, and links are not encrypted yet (keys do not "
                    f"exist in this version): listen on 127.0.0.1, or add --insecure-network on a test network where "
                    f"everybody may read and write"
                )
        if len(set(listens.values())) < 3:
            raise ConfigError(
                f"listen, peer_listen and gossip_listen must differ: {', '.join(map(str, listens.values()))}"
            )
        for key in ("advertise", "peer_advertise", "gossip_advertise"):
            address = parse_address(getattr(self, key), key)
            if address.is_wildcard:
                raise ConfigError(
                    f"nobody can dial {address}: with a wildcard --listen add --advertise HOST:PORT, which others dial"
                )

    def _validate_http(self) -> None:
        address = self.http_address
        if address is None:
            return
        if not address.is_numeric:
            raise ConfigError(f"http {address}: a socket is bound to a numeric address of this machine, not to a name")
        if not address.is_loopback and self.http_token_file is None:
            raise ConfigError(
                f"http {address} can be reached from other machines: add --http-token-file FILE with a secret of at least 16 bytes "
                f"(mode 600), which /v1/* asks for as a bearer token"
            )
        for key in ("listen", "peer_listen", "gossip_listen"):
            if parse_address(getattr(self, key), key) == address:
                raise ConfigError(f"http and {key} must differ: {address}; choose another --http, or --http off")


class Address(NamedTuple):
    """HOST:PORT; IPv6 hosts are kept without brackets and printed with them."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_numeric(self) -> bool:
        return _ip(self.host) is not None

    @property
    def is_loopback(self) -> bool:
        ip = _ip(self.host)
        return ip is not None and ip.is_loopback

    @property
    def is_wildcard(self) -> bool:
        ip = _ip(self.host)
        return ip is not None and ip.is_unspecified


def parse_address(text: str, option: str) -> Address:
    """`HOST:PORT` or `[V6]:PORT`; `localhost` becomes 127.0.0.1, sockets are bound to numbers. Errors name `option`."""
    host, colon, port = text.strip().rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ConfigError(f"{option} {text!r}: write an IPv6 address in brackets, as in [::1]:{DEFAULT_PORT}")
    if not colon or not host or not port.isascii() or not port.isdigit():
        raise ConfigError(f"{option} {text!r}: expected HOST:PORT, as in 127.0.0.1:{DEFAULT_PORT}")
    if not 1 <= int(port) <= 65535:
        raise ConfigError(f"{option} {text!r}: a port is a number from 1 to 65535")
    if not re.fullmatch(r"[A-Za-z0-9._:%-]+", host):
        raise ConfigError(f"{option} {text!r}: {host!r} is not a host name or address")
    return Address("127.0.0.1" if host == "localhost" else host, int(port))


def parse_bytes(value: object, option: str) -> int:
    """A count of bytes: 67108864, "64MiB", "64 MB". Units of 1024 have the i."""
    return _parse_number(value, option, _BYTE_UNITS, "bytes, as in 64MiB")


def parse_ms(value: object, option: str) -> int:
    """Milliseconds: 500, "500ms", "1.5s", "2m"."""
    return _parse_number(value, option, _TIME_UNITS, "milliseconds, as in 500, 500ms or 1.5s")


def load(flags: Mapping[str, object], environ: Mapping[str, str], file: Path | None = None) -> NodeSettings:
    """Settings from all four sources, not yet validated. `flags` is keyed by field; None there means "not given"."""
    values: dict[str, Any] = {}
    if file is not None:
        values.update(_from_file(file))
    values.update(_from_environment(environ))
    for field, value in flags.items():
        setting = _BY_FIELD.get(field)
        assert setting is not None, f"no such setting: {field}"
        if value is not None:
            values[field] = setting.parse(value, "--" + field.replace("_", "-"))
    return NodeSettings(**values)


def environment_of(field: str) -> str:
    """The environment variable of a field; ConfigError with the near match if there is no such field."""
    setting = _BY_FIELD.get(field)
    if setting is None:
        raise ConfigError(f"there is no setting {field!r}{_near(field, list(_BY_FIELD))}")
    return f"ZKV_{setting.section}__{setting.field}".upper()


# --- names and parsers ------------------------------------------------------------------------------------------------


class _Setting(NamedTuple):
    section: str
    field: str
    parse: Callable[[object, str], Any]

    @property
    def path(self) -> str:
        return f"{self.section}.{self.field}"


def _text(value: object, option: str) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{option} is {value!r}; expected text")
    return value


def _path(value: object, option: str) -> Path:
    if isinstance(value, Path):
        return value
    text = _text(value, option)
    if not text:
        raise ConfigError(f"{option} is empty; expected a directory")
    return Path(text).expanduser()


def _whole(value: object, option: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ConfigError(f"{option} is {value!r}; expected a whole number")
    try:
        return int(value)
    except ValueError:
        raise ConfigError(f"{option} is {value!r}; expected a whole number") from None


def _number(value: object, option: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ConfigError(f"{option} is {value!r}; expected a number")
    try:
        return float(value)
    except ValueError:
        raise ConfigError(f"{option} is {value!r}; expected a number") from None


def _flag(value: object, option: str) -> bool:
    if isinstance(value, bool):
        return value
    choice = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if isinstance(value, str) and value.lower() in choice:
        return choice[value.lower()]
    raise ConfigError(f"{option} is {value!r}; expected true or false")


_SECTIONS: Final[dict[str, dict[str, Callable[[object, str], Any]]]] = {
    "node": {"name": _text, "data": _path, "dc": _text, "rack": _text, "host": _text, "weight": _number},
    "network": {
        "listen": _text,
        "peer_listen": _text,
        "gossip_listen": _text,
        "advertise": _text,
        "peer_advertise": _text,
        "gossip_advertise": _text,
        "insecure_network": _flag,
    },
    "cluster": {"initial": _text, "cluster_name": _text, "partitions": _whole},
    "storage": {
        "fsync": _text,
        "fsync_interval_ms": parse_ms,
        "wal_bytes": parse_bytes,
        "reserve_bytes": parse_bytes,
        "cache_bytes": parse_bytes,
    },
    "membership": {"heartbeat_interval_ms": parse_ms, "heartbeat_timeout_ms": parse_ms},
    "http": {"http": _text, "http_token_file": _path},
    "log": {"log_level": _text, "log_format": _text},
}
_SETTINGS: Final = tuple(
    _Setting(section, field, parse) for section, fields in _SECTIONS.items() for field, parse in fields.items()
)
_BY_FIELD: Final = {setting.field: setting for setting in _SETTINGS}
_BY_PATH: Final = {setting.path: setting for setting in _SETTINGS}

_BYTE_UNITS: Final = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_TIME_UNITS: Final = {"": 1, "ms": 1, "s": 1000, "m": 60_000}
_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")


def _parse_number(value: object, option: str, units: Mapping[str, int], expected: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    if match is None or match[2].lower() not in units:
        raise ConfigError(f"{option} is {value!r}; expected {expected}")
    return round(float(match[1]) * units[match[2].lower()])


def _from_file(file: Path) -> dict[str, Any]:
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{file}: there is no such configuration file (--config)") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not TOML: {error}") from error
    values: dict[str, Any] = {}
    for section, table in document.items():
        if section not in _SECTIONS:
            raise ConfigError(f"{file}: there is no section [{section}]{_near(section, list(_SECTIONS))}")
        if not isinstance(table, dict):
            raise ConfigError(f"{file}: {section} must be a section, as in [{section}]")
        for key, value in table.items():
            setting = _BY_PATH.get(f"{section}.{key}")
            if setting is None:
                raise ConfigError(
                    f"{file}: there is no key {key} in [{section}]{_near(f'{section}.{key}', list(_BY_PATH))}"
                )
            values[setting.field] = setting.parse(value, f"{file}: {setting.path}")
    return values


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """Only names with the double underscore are settings; `ZKV_URL` and the like belong to others."""
    known = {environment_of(field): setting for field, setting in _BY_FIELD.items()}
    values: dict[str, Any] = {}
    for name in sorted(environ):
        if not name.startswith("ZKV_") or "__" not in name:
            continue
        setting = known.get(name)
        if setting is None:
            raise ConfigError(f"the environment variable {name} is no setting{_near(name, list(known))}")
        values[setting.field] = setting.parse(environ[name], name)
    return values


def _near(word: str, known: list[str]) -> str:
    """The nearest known name as the end of a sentence, or all of them if there are few, or nothing."""
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if found:
        return f"; did you mean {found[0]}?"
    return f"; known: {', '.join(known)}" if len(known) <= 8 else ""


def _one_of(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(
            f"{option} is {value!r}; expected one of {', '.join(known)}{_near(value, list(known)) if value else ''}"
        )


def _above(base: Address, step: int) -> Address:
    if base.port + step > 65535:
        raise ConfigError(
            f"{base}: the ports {base.port} to {base.port + step} are needed and end at 65535; choose a lower one"
        )
    return base._replace(port=base.port + step)


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
