"""Free loopback ports for nodes that are about to start.

Owns: the choice of ports. Must not know: what listens on them.

A node needs four ports in a row. They are probed by binding, below the range from which the kernel takes ports for
outgoing
connections, and all probes are held until the whole choice is made. Between letting go and the node's own bind
somebody else
may take one; the caller then chooses again.
"""

from __future__ import annotations

import contextlib
import random
import socket
from typing import Final

HOST: Final = "127.0.0.1"
PORTS_PER_NODE: Final = 4
_LOWEST: Final = 10_000
_HIGHEST: Final = 32_000
_TRIES: Final = 2_000


def free_base_ports(count: int, dice: random.Random | None = None) -> list[int]:
    """`count` base ports, each with the next three free as well. OSError if the range is as good as full."""
    rolls = dice or random.Random()
    chosen: list[int] = []
    with contextlib.ExitStack() as held:
        for _ in range(_TRIES):
            if len(chosen) == count:
                return chosen
            base = rolls.randrange(_LOWEST, _HIGHEST, PORTS_PER_NODE)
            probes = contextlib.ExitStack()
            try:
                for port in range(base, base + PORTS_PER_NODE):
                    probe = probes.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind((HOST, port))
                    # without listening, a second probe of the same port would be let in
                    probe.listen(1)
            except OSError:
                probes.close()
                continue
            held.enter_context(probes)
            chosen.append(base)
    raise OSError(f"found only {len(chosen)} of {count} groups of free ports between {_LOWEST} and {_HIGHEST}")
