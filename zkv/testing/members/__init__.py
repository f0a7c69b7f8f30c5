"""The membership core at 10, 100, 1,000 members over virtual time. See docs/membership.md."""
