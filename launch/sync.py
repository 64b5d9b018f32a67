"""`python -m launch.sync runs`: send what was logged offline to W&B."""

from __future__ import annotations

import sys

from launch.tracking.sync import main

if __name__ == "__main__":
    sys.exit(main())
