"""``python -m talker_rl``: the same as ``talker-rl``."""

from __future__ import annotations

import sys

from talker_rl.cli import main

if __name__ == "__main__":
    sys.exit(main())
