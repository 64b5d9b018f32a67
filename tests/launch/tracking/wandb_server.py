"""A stand-in for the W&B service: it answers as much as the client asks, and keeps what is sent."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "0123456789abcdef" * 2 + "01234567"
"""Of the shape that the client takes for a key."""
_VIEWER = {"id": "v", "entity": "team", "username": "u", "flags": "{}", "teams": {"edges": []}}


@dataclass
class Service:
    """What has been sent: every request's text, the history rows of each run, and the saved views."""

    url: str = ""
    texts: list[str] = field(default_factory=list)
    histories: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    runs: list[dict[str, Any]] = field(default_factory=list)
    views: list[dict[str, Any]] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)
    """Ids of runs that the service does not take."""

    def environment(self) -> dict[str, str]:
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY}


@contextmanager
def serving() -> Iterator[Service]:
    service = Service()
    server = _Server(("127.0.0.1", 0), _handler(service))
    service.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None: ...  # clients hang up as they like


def _handler(service: Service) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None: ...  # noqa: A002

        def do_GET(self) -> None:
            self._answer({})

        def do_PUT(self) -> None:
            service.texts.append(self._text())
            self._answer({})

        def do_POST(self) -> None:
            text = self._text()
            service.texts.append(text)
            body = json.loads(text) if text.startswith("{") else {}
            if self.path.endswith("/graphql"):
                self._graphql(body["query"], body.get("variables") or {})
            else:
                self._stream(body)

        def _stream(self, body: dict[str, Any]) -> None:
            """Lines of files, the place of the first one in the file with them."""
            part = body.get("files", {}).get("wandb-history.jsonl")
            if part is not None:
                rows = service.histories.setdefault(self.path.split("/")[-2], [])
                rows[part["offset"] :] = [json.loads(line) for line in part["content"]]
            self._answer({"limits": {}})

        def _graphql(self, query: str, given: dict[str, Any]) -> None:
            if given.get("name") in service.refused:
                self._answer({"errors": [{"message": "permission denied"}]}, 403)
            elif "upsertBucket" in query:
                service.runs.append(given)
                self._answer({"data": {"upsertBucket": {"bucket": self._bucket(given), "inserted": True}}})
            elif "historyLineCount" in query:
                known = service.histories.get(given["name"])
                found = self._bucket(given) | self._tail(known) if known else None
                model = {"id": "p", "name": "p", "entity": {"id": "e", "name": "team"}, "bucket": found}
                self._answer({"data": {"model": model}})
            elif "createRunFiles" in query:
                files = [{"name": name, "uploadUrl": f"{service.url}/up/{name}"} for name in given["files"]]
                self._answer(
                    {"data": {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}}
                )
            elif "upsertView" in query:
                service.views.append(given)
                self._answer(
                    {"data": {"upsertView": {"view": {"id": "view", "name": "nw-x"}, "inserted": True}}}
                )
            elif query.lstrip().startswith("mutation"):  # artifacts
                self._answer({"errors": [{"message": "not done here"}]}, 400)
            else:
                self._answer({"data": {"viewer": _VIEWER, "serverInfo": None, "project": None}})

        def _bucket(self, given: dict[str, Any]) -> dict[str, Any]:
            lines = len(service.histories.get(given["name"], ()))
            project = {"id": "p", "name": given.get("project"), "entity": {"id": "e", "name": "team"}}
            return {"id": "r", "name": given["name"], "displayName": "n", "description": "", "config": "{}",
                    "sweepName": None, "historyLineCount": lines, "project": project}  # fmt: skip

        def _tail(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
            return {"summaryMetrics": "{}", "eventsLineCount": 0, "logLineCount": 0, "tags": [],
                    "historyTail": json.dumps([json.dumps(rows[-1])]), "eventsTail": "[]",
                    "wandbConfig": '{"t": 1}'}  # fmt: skip

        def _text(self) -> str:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Content-Encoding") == "gzip":
                raw = gzip.decompress(raw)
            return raw.decode("utf-8", "replace")

        def _answer(self, value: Any, code: int = 200) -> None:
            body = json.dumps(value).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler
