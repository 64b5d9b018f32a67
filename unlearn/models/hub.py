"""Whether the hub answers: where it could not be reached, it is left alone for some minutes."""

from __future__ import annotations

import time

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import FileMetadataError, HfHubHTTPError

_PAUSE = 300.0  # seconds in which an endpoint that could not be reached is not asked again
_silent: dict[str, float] = {}  # until when, by endpoint


def local_only() -> bool:
    """Return whether files are taken from the cache alone, as the hub could not be reached a moment ago.

    Each file that is asked for costs half a minute of retries otherwise.
    """
    return time.monotonic() < _silent.get(constants.ENDPOINT, 0.0)


def look(repository: str) -> None:
    """Find out by one request, after a file was not to be had, whether the hub answers at all."""
    if constants.HF_HUB_OFFLINE or local_only():
        return
    try:
        huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(repository, "config.json"))
    except (HfHubHTTPError, FileMetadataError, ValueError):
        return  # an answer, or no name of a repository
    except Exception:  # of the HTTP library, which differs between releases of the hub's
        _silent[constants.ENDPOINT] = time.monotonic() + _PAUSE
