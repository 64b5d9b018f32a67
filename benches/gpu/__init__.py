"""A check of this program on one GPU: `python -m benches.gpu`."""

import unlearn.environment  # noqa: F401 (before what imports DeepSpeed and torchao)
