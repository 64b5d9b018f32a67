"""An objective whose steps take their time until a test lets them go."""

from __future__ import annotations

import os
import time
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

UNTIL = "TEST_PATIENT_UNTIL"


def patient(logp: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Negative log-likelihood, after a fifth of a second where the file that `UNTIL` names is not there."""
    if not Path(os.environ[UNTIL]).exists():
        time.sleep(0.2)
    return -logp
