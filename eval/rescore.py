"""`python -m eval.rescore LOG`: compute this project's metrics from a published TOFU log, without a model."""

from __future__ import annotations

import sys

from eval.benchmarks.tofu.rescore import main

if __name__ == "__main__":
    sys.exit(main())
