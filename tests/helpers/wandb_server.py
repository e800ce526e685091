"""A W&B server that accepts runs and their metrics, and fails if it is told to."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

VIEWER = {"id": "VXNlcg==", "entity": "us", "username": "me", "flags": "{}", "teams": {"edges": []}}


class WandBServer(ThreadingHTTPServer):
    """`fault` is "" (none), "hang", "500", or "refuse" (it accepts no runs).

    Attributes:
        history: run id -> lines of its history, in order.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.fault = ""
        self.released = threading.Event()
        self._lines: dict[str, dict[int, Any]] = {}

    @property
    def history(self) -> dict[str, list[dict[str, Any]]]:
        return {run: [json.loads(lines[n]) for n in sorted(lines)] for run, lines in list(self._lines.items())}

    def take(self, run: str, files: dict[str, Any]) -> None:
        chunk = files.get("wandb-history.jsonl", {"offset": 0, "content": []})
        self._lines.setdefault(run, {}).update(enumerate(chunk["content"], chunk["offset"]))

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore errors of clients that have gone."""


class _Handler(BaseHTTPRequestHandler):
    server: WandBServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def handle_request(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.server.fault == "hang":
            self.server.released.wait()
            return
        if self.server.fault == "500":
            self.answer(500, {})
        elif self.path == "/graphql":
            asked = json.loads(body)
            self.answer(200, self.queried(asked["query"], asked.get("variables") or {}))
        else:
            if self.path.endswith("/file_stream"):
                self.server.take(self.path.split("/")[-2], json.loads(body).get("files") or {})
            self.answer(200, {})

    def queried(self, query: str, of: dict[str, Any]) -> dict[str, Any]:
        if "upsertBucket" in query:
            if self.server.fault == "refuse":
                return {"errors": [{"message": "no such entity"}], "data": None}
            project = {"id": "p", "name": "biomedlm", "entity": {"id": "e", "name": "us"}}
            bucket = {
                "id": "b", "name": of.get("name"), "displayName": of.get("displayName"), "description": "",
                "config": "{}", "sweepName": None, "project": project, "historyLineCount": 0,
            }  # fmt: skip
            return {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}
        if "createRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.server.url}/upload/{name}"} for name in of["files"]]
            return {"data": {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}}
        return {"data": {"viewer": VIEWER} if "viewer" in query else {}}

    def answer(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = do_POST = handle_request  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        """Print no log."""


@contextmanager
def wandb_server() -> Iterator[WandBServer]:
    with WandBServer() as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield server
        finally:
            server.released.set()
            server.shutdown()
