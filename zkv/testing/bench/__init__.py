"""Benchmarks: workloads of zkv in alternating rounds with what a user would pick instead, in one run on one machine.

Owns: nothing of its own; see rounds (alternation, statistics), ledger (what was written, digests), sides (how a round is driven), ours, echo,
probe, redis_peer, etcd_peer (one file per peer), catalog (which meets which), machine. Must not know: the command line.
"""
