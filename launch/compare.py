"""`python -m launch.compare RUNS… --out DIR`: runs compared by their results."""

from __future__ import annotations

import sys

from launch.report.compare.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
