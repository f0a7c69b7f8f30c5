"""Who is there: SWIM with Lifeguard, as a pure state machine. Start at `membership.Membership`; docs/membership.md tells the story."""

from zkv.core.membership.membership import Membership

__all__ = ["Membership"]
