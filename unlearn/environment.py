"""Set environment variables that libraries read when they are imported; import this module before them."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import torch

# A folder for compiled extensions: all versions of DeepSpeed on a machine share the default one.
os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(__file__).resolve().parents[1] / ".torch_extensions"))
# Otherwise DeepSpeed warns that there is no accelerator.
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
# DeepSpeed's own calls.
warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
