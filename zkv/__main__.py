"""`python -m zkv` is the command `zkv`."""

from __future__ import annotations

import sys

from zkv.cli.main import main

sys.exit(main())
