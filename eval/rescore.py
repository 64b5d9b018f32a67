"""`python -m eval.rescore LOG`: our metrics of a published TOFU log, without any model."""

from __future__ import annotations

import sys

from eval.benchmarks.tofu.rescore import main

if __name__ == "__main__":
    sys.exit(main())
