"""Models: locate, load, adapt, save. transformers and the hub are quiet from here on.

Classes of transformers are named through the package where they are used: to import those of models takes a
second or two, which commands that load none need not wait for.
"""

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
# Of PEFT; for the second see adapter_targets.py.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
warnings.filterwarnings(
    "ignore", message="Model has `tie_word_embeddings=True`"
)  # of PEFT; see adapter_targets.py
