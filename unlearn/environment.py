"""Set what libraries read when they are imported; import this module before them."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import torch

# A folder for compiled extensions: all versions of DeepSpeed on a machine share the default one.
os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(__file__).resolve().parents[1] / ".torch_extensions"))
# Otherwise DeepSpeed warns that there is no accelerator.
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
# oneDNN keeps up to 1024 kernels by their shapes, and every forward of rows without padding has new ones: a
# gigabyte with AVX-512 for bf16. Those of one forward are enough.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
# DeepSpeed's own calls.
warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")


class _WithoutMlflow:
    """A finder that hides MLflow from DeepSpeed's import.

    DeepSpeed's autotuner, which is not used, imports MLflow where it is installed. That takes a second or
    more, and MLflow reports its use.
    """

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        spec = getattr(sys.modules.get("deepspeed"), "__spec__", None)
        if name == "mlflow" and getattr(spec, "_initializing", False):
            raise ModuleNotFoundError("hidden from DeepSpeed", name=name)


sys.meta_path.insert(0, _WithoutMlflow)


def unhide(package: str) -> None:
    """Let a package be imported that `unlearn/__init__.py` hides."""
    if package in sys.modules and sys.modules[package] is None:
        del sys.modules[package]
