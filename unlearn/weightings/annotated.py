"""Weights from annotated key words (arXiv 2505.11953)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from unlearn.weightings._share import Share


def annotated(important: Bool[Tensor, " N"], *, soft: Share = 1.0) -> Float[Tensor, " N"]:
    """`soft` for the tokens of annotated spans, 1 − soft for the others; 1 keeps only the annotated ones.

    After the authors' dataloader_imp.py, which finds the tokens by searching substrings, and in its hard mode
    drops all other labels. Here spans of characters decide, and the other tokens have a weight of zero.
    """
    return torch.where(important, soft, 1 - soft).float()
