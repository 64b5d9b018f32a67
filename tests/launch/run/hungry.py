"""An objective that takes much memory for each token, of a run under an allocator limit."""

from __future__ import annotations

import resource

from jaxtyping import Float
from torch import Tensor

from tests.allocator import take

TOKEN = 96  # MiB for each answer token of a micro-batch
LIMIT = 6 << 30  # bytes of each process: DeepSpeed's bucket alone counts 2 GiB, of which little is touched


def hungry(logp: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Negative log-likelihood, with memory for each token that is not needed."""
    take(TOKEN * len(logp))
    return -logp


def limit() -> None:
    """Limit this process and those that it starts."""
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, resource.getrlimit(resource.RLIMIT_DATA)[1]))
