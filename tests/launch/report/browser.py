"""A page as a real browser makes it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync"
    " --disable-background-networking --disable-component-update --virtual-time-budget=12000"
)


def drawn(page: Path, profile: Path, *, charts: int) -> str:
    """Return the document after all scripts, which reported no error and this number of charts.

    Skips the test where there is no browser.
    """
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium on this machine: the page was not opened")
    done = subprocess.run(
        [browser, *_FLAGS.split(), f"--user-data-dir={profile}", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    root = re.search(r"<html[^>]*>", done.stdout)
    assert root is not None, done.stderr[-2000:]
    assert "data-error" not in root[0]
    assert f'data-charts="{charts}"' in root[0]
    return done.stdout
