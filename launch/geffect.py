"""`python -m launch.geffect RUNS… --out DIR`: runs compared by their G-effect."""

from __future__ import annotations

import sys

from launch.report.geffect.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
