"""`python -m launch.workspace --project P --entity E`: the saved view of a study in W&B."""

from __future__ import annotations

import sys

from launch.tracking.workspace import main

if __name__ == "__main__":
    sys.exit(main())
