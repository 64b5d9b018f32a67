"""Whether the hub answers: a process that once could not connect asks it no more."""

from __future__ import annotations

import huggingface_hub
from huggingface_hub.errors import FileMetadataError, HfHubHTTPError

_silent: set[str] = set()  # endpoints that could not be reached


def local_only() -> bool:
    """Return whether files are taken from the cache alone, as the hub could not be reached before.

    Each file that is asked for costs half a minute of retries otherwise.
    """
    return huggingface_hub.constants.ENDPOINT in _silent


def look(repository: str) -> None:
    """Find out by one request, after a file was not to be had, whether the hub answers at all."""
    if huggingface_hub.constants.HF_HUB_OFFLINE or local_only():
        return
    try:
        huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(repository, "config.json"))
    except (HfHubHTTPError, FileMetadataError):
        return  # an answer
    except Exception:  # of the HTTP library, which differs between releases of the hub's
        _silent.add(huggingface_hub.constants.ENDPOINT)
