"""The deterministic simulator: whole clusters of the production code over virtual time, a faulty network and faulty disks.

Owns: nothing of its own; see plan (what a seed draws), world (time, network, nodes), disk, clients, judge, simulation (phases, shrinking).
Must not know: the command line.
"""

from __future__ import annotations

from zkv.testing.sim.plan import Plan, draw
from zkv.testing.sim.simulation import Result, Simulation, run_seed, save, shrink

__all__ = ["Plan", "Result", "Simulation", "draw", "run_seed", "save", "shrink"]
