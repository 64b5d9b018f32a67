"""Keep transformers, the hub and PEFT quiet; `locate` imports this before they are used."""

from __future__ import annotations

import os
import warnings

import huggingface_hub
from transformers.utils import logging

if "TRANSFORMERS_VERBOSITY" not in os.environ:
    logging.set_verbosity_error()  # the one warning that matters, missing weights, is an error here
_downloads_shown = not huggingface_hub.utils.are_progress_bars_disabled()
logging.disable_progress_bar()
if _downloads_shown:  # downloads take long enough for a progress bar
    huggingface_hub.utils.enable_progress_bars()
# Warnings of PEFT. The second is of tied embeddings with adapters, which `export.exportable` saves untied.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
warnings.filterwarnings(
    "ignore", message="Model has `tie_word_embeddings=True`"
)  # of PEFT; see adapter_targets.py
