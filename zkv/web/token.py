"""The bearer token of a listener that others can reach.

Owns: where it is read from and what is refused. Must not know: requests.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from zkv.errors import ConfigError

TOKEN_BYTES_MIN: Final = 16
_OPTION: Final = "--http-token-file"


def read_token(file: Path) -> bytes:
    """The token, without white space around it. Raises ConfigError: missing, readable by others, too short to be a secret."""
    try:
        with file.open("rb") as opened:
            mode = os.fstat(opened.fileno()).st_mode
            token = opened.read().strip()
    except OSError as error:
        raise ConfigError(f"{_OPTION} {file}: {error.strerror}") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"{_OPTION} {file}: others can read it; chmod 600 {file}")
    if len(token) < TOKEN_BYTES_MIN:
        raise ConfigError(f"{_OPTION} {file}: {len(token)} bytes; a token has at least {TOKEN_BYTES_MIN}")
    return token
