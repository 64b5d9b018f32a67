"""Where the checkout is, and the folder of large inputs next to it."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("UNLEARN_SHARED", ROOT.parent / "shared"))
"""Real data, models and other people's results; tests that need them skip where they are absent."""
