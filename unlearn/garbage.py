"""When Python looks for garbage, and how the memory of what has gone is given back."""

from __future__ import annotations

import atexit
import ctypes
import gc


def pause_collection() -> None:
    """Collect no garbage until `resume_collection`, and none at the end of the process.

    Importing torch and transformers makes a million objects that stay: looking through them again and again
    takes a third of the time of a short command.
    """
    gc.disable()
    atexit.register(gc.freeze)


def resume_collection() -> None:
    """Collect garbage again, but leave out what was imported: DeepSpeed collects for each engine."""
    if not gc.isenabled():  # once per process: a cycle that is frozen is never freed
        gc.freeze()
        gc.enable()


def free_memory() -> None:
    """Free what nothing refers to any more, and give the memory back to the system and the device.

    Hooks make cycles, which would keep a model while another is loaded. torch keeps what is freed on a GPU,
    and glibc what lies between pieces in use: after training a small model, 100 MiB.
    """
    import torch

    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc has it
        trim(0)
