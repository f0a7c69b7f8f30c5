"""Tools to test with, shipped because users of the store test with it too.

Owns: clusters of real processes on one machine, and the deterministic simulator. Must not know: the command line.
"""

from __future__ import annotations

from zkv.testing.local_cluster import LocalCluster, LocalNode
from zkv.testing.sim import Simulation

__all__ = ["LocalCluster", "LocalNode", "Simulation"]
