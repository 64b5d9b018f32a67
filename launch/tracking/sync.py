"""`unlearn sync runs`: send what was logged offline to W&B, from a machine with a network."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from launch.tracking.wandb_session import PROGRAM, key_configured, session, without_mode_variables
from unlearn.arguments import Parser, path_argument
from unlearn.errors import UserError
from unlearn.guard import tool

_DESCRIPTION = "Send what was logged offline to W&B, from a machine with a network."
_CONNECT_TIMEOUT = 15.0  # seconds for the service to answer
_TO_SEND, _SENT, _THERE, _RUNNING, _FAILED = "to be sent", "sent", "already there", "still running", "failed"


@dataclass(frozen=True)
class Piece:
    """What one process of a run logged: an `offline-run-<time>-<id>` folder, and the state of sending it."""

    folder: Path
    state: str = _TO_SEND
    reason: str = ""

    @property
    def run_id(self) -> str:
        return self.folder.name.split("-", 3)[3]


@tool
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 1 something was not sent, 2 refused."""
    parsed = parser().parse_args(arguments)
    pieces = offline_pieces(parsed.runs)
    if not parsed.dry_run and any(piece.state == _TO_SEND for piece in pieces):
        refuse_without_service()
        options = [f"--{name}={value}" for name in ("project", "entity") if (value := getattr(parsed, name))]
        pieces = send(pieces, options, timeout=parsed.timeout)
    _print_states(Console(), pieces, every=parsed.dry_run)
    return int(any(piece.state == _FAILED for piece in pieces))


def offline_pieces(roots: Iterable[Path]) -> list[Piece]:
    """Return every offline folder in run directories or folders of them, the oldest first.

    Raises:
        UserError: one of the folders does not exist.
    """
    folders: set[Path] = set()
    for root in roots:
        if not root.is_dir():
            raise UserError(f"{root}: there is no such folder; name run directories, or a folder of them")
        inside = [root] if root.name.startswith("offline-run-") else root.rglob("offline-run-*")
        folders |= {folder.resolve() for folder in inside if any(folder.glob("*.wandb"))}
    return [_piece(folder) for folder in sorted(folders, key=lambda each: (each.name, each))]


def refuse_without_service() -> None:
    """Check that W&B can be used.

    Raises:
        UserError: there is no key, or the service does not answer.
    """
    settings = session()
    if not key_configured(settings):
        raise UserError(
            f"no W&B key for {settings.base_url}: run `wandb login` once, or set WANDB_API_KEY; "
            "--dry-run shows what would be sent"
        )
    try:
        urllib.request.urlopen(settings.base_url, timeout=_CONNECT_TIMEOUT).close()
    except urllib.error.HTTPError:
        pass  # it answers
    except (OSError, ValueError) as error:
        raise UserError(
            f"{settings.base_url} cannot be reached from here ({error}): "
            "start this on a machine that has a network, a login node say, or set WANDB_BASE_URL"
        ) from None


def send(pieces: Sequence[Piece], options: Sequence[str], *, timeout: float) -> list[Piece]:
    """Send each piece with its own `wandb sync`, so that a failure does not stop the others.

    After a piece that failed, no later piece of the same run is sent: W&B would number its steps wrongly.
    """
    done: list[Piece] = []
    broken: set[str] = set()
    waiting = sum(piece.state == _TO_SEND for piece in pieces)
    with tqdm(total=waiting, desc="sync", unit="folder", disable=None) as bar:
        for piece in pieces:
            if piece.state == _TO_SEND:
                if piece.run_id in broken:
                    piece = replace(piece, state=_FAILED, reason="an earlier piece of this run was not sent")
                else:
                    piece = _sent(piece, options, timeout)
                bar.update()
            if piece.state in (_FAILED, _RUNNING):
                broken.add(piece.run_id)
            done.append(piece)
    return done


def _piece(folder: Path) -> Piece:
    if any(folder.glob("*.wandb.synced")):
        return Piece(folder, _THERE)
    lock = folder.parent.parent / ".lock"  # of the run directory, held while a process works on the run
    if lock.is_file():
        try:
            FileLock(lock).acquire(timeout=0).lock.release()
        except Timeout:
            return Piece(folder, _RUNNING, "W&B would take a part of it for the whole; sync again later")
        except OSError:
            pass  # of another user: its state is unknown
    return Piece(folder)


def _sent(piece: Piece, options: Sequence[str], timeout: float) -> Piece:
    command = [sys.executable, "-m", "wandb", "sync", *options, str(piece.folder)]
    with tempfile.TemporaryDirectory() as elsewhere:  # wandb writes a log into its working directory
        try:
            with without_mode_variables():
                variables = dict(os.environ)
            done = subprocess.run(
                command,
                cwd=elsewhere,
                env=variables | {"WANDB_PROGRAM": PROGRAM, "WANDB_DIR": elsewhere, "WANDB_SILENT": "false"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=timeout,
            )
        except subprocess.TimeoutExpired:
            return replace(
                piece, state=_FAILED, reason=f"not done after {timeout:g} s; --timeout allows more"
            )
    # Its exit code is 0 even after it gave up; only the marker file is reliable.
    if done.returncode == 0 and any(piece.folder.glob("*.wandb.synced")):
        return replace(piece, state=_SENT)
    return replace(piece, state=_FAILED, reason=_reason(done.stdout) or f"exit code {done.returncode}")


def _reason(output: str) -> str:
    """The last line with an error, else the last line."""
    lines = [line.removeprefix("wandb: ").strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower() or "fail" in line.lower()]
    return (errors or lines or [""])[-1]


def _print_states(console: Console, pieces: Sequence[Piece], *, every: bool) -> None:
    table = Table(box=None, header_style="bold")
    for head in ("run", "piece", "state", "why"):
        table.add_column(head, overflow="fold")
    for piece in pieces:
        if every or piece.state in (_FAILED, _RUNNING):
            table.add_row(piece.folder.parent.parent.name, piece.folder.name, piece.state, piece.reason)
    if table.row_count:
        console.print(table, highlight=False, markup=False)
    counts = Counter(piece.state for piece in pieces)
    summary = ", ".join(f"{number} {state}" for state, number in counts.items())
    console.print(summary or "there is no offline-run-* folder", highlight=False)


def parser() -> Parser:
    """Return the parser of the arguments."""
    made = Parser(
        "sync", ("runs", "runs --dry-run", "runs --project my-study --entity my-team"), _DESCRIPTION
    )
    made.add_argument("runs", nargs="*", type=path_argument, default=[Path("runs")], metavar="RUNS",
                      help="run directories, or folders of them (default: runs)")  # fmt: skip
    made.add_argument("--dry-run", action="store_true", help="show what would be sent, and in what order")
    made.add_argument("--project", help="send to this project, whatever the runs say")
    made.add_argument("--entity", help="send to this user or team")
    made.add_argument("--timeout", type=float, default=3600, help="seconds for each folder (default: 3600)")
    return made
