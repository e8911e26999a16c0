"""A run's report for a browser on this machine, made anew from the run as it goes on: what `report --serve` does.

It answers GET and HEAD for the page alone, on the loopback address, to requests that name it as their host (a page of
another site whose name was turned to this address does not), and reads the run's directory without changing it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from .. import files
from ..checkpoint.run import JOURNAL, RUN, STATUSES, RunDirectory, holder, read_about
from ..errors import UsageError
from ..tracking.journal import end_of_last_line, run_records
from ..tracking.report import json_of, render_report, text_of
from ..tracking.run_numbers import RunNumbers
from ..tracking.validation import FILE as VALIDATION
from ..tracking.validation import read_validation
from .record import RECIPE, seen_status

HOST = "127.0.0.1"
# How often a page asks, in seconds: while its run trains, and else (it may be gone on with).
_OFTEN, _RARELY = 2.0, 10.0
_TAIL = 4096
_TIMEOUT_S = 30.0


class LiveReport:
    """The page of the run in `run_dir`; reads again only what has changed. `brief` is as `write_report` has it."""

    def __init__(self, run_dir: Path, brief: str = ""):
        self.run_dir, self.brief = run_dir, brief
        self._lock = threading.Lock()
        self._begin()
        self._signature: Any = None
        self._last: tuple[dict[str, Any], str, dict[str, Any]] = {}, "", {}
        self._page, self.tag = b"", ""

    def _begin(self) -> None:
        self._numbers, self._end, self._tail, self._file = RunNumbers(), 0, b"", (0, 0)

    def page(self) -> tuple[bytes, str]:
        """The page as it is now, and a tag that is another whenever the page is."""
        with self._lock:
            status = self._status()
            signature = status, *map(self._stamp, (JOURNAL, RUN, RECIPE, VALIDATION))
            if signature != self._signature:
                self._signature = signature
                self._page = self._made(status).encode(errors="backslashreplace")
                self.tag = f'"{hashlib.sha256(self._page).hexdigest()[:32]}"'
            return self._page, self.tag

    def _status(self) -> str:
        if not RunDirectory.holds_run(self.run_dir):
            return "removed"
        status = (read_about(self.run_dir) or {}).get("status")
        return seen_status(status if status in STATUSES else "damaged", holder(self.run_dir))

    def _stamp(self, name: str) -> tuple[int, ...] | None:
        with contextlib.suppress(OSError):
            status = os.lstat(self.run_dir / name)
            return status.st_ino, status.st_size, status.st_mtime_ns
        return None

    def _made(self, status: str) -> str:
        problems: list[str] = []
        about: dict[str, Any] = {}
        recipe = ""
        if status == "removed":
            problems.append(f"{self.run_dir}: the run is not there any more; below is what was read of it before")
        else:
            for read in (self._read_journal, lambda: about.update(json_of(self.run_dir / RUN))):
                try:
                    read()
                except UsageError as error:  # half-written, or removed just now
                    problems.append(str(error))
            with contextlib.suppress(UsageError):
                recipe = text_of(self.run_dir / RECIPE)
            self._last = about, recipe, read_validation(self.run_dir, problems.append)
        about, recipe, found = self._last
        return render_report(
            self._numbers,
            run={**about, "status": status},
            recipe=recipe,
            name=self.run_dir.resolve().name,
            validation=found,
            brief=self.brief,
            live=_OFTEN if status == "running" else _RARELY,
            problems=problems,
        )

    def _read_journal(self) -> None:
        """Add the records that are new; all of them anew where those before are no longer the same."""
        path = self.run_dir / JOURNAL
        if not os.path.lexists(path):
            return
        try:
            with os.fdopen(files.open_regular(path), "rb") as file:
                status = os.fstat(file.fileno())
                identity = status.st_dev, status.st_ino
                file.seek(max(0, self._end - _TAIL))
                if identity != self._file or file.read(min(self._end, _TAIL)) != self._tail:
                    self._begin()
                    self._file = identity
                end = end_of_last_line(file.fileno())
                for record in run_records(path, self._numbers.leave_out, start=self._end, end=end):
                    self._numbers.add(record)
                self._end = end
                file.seek(max(0, end - _TAIL))
                self._tail = file.read(min(end, _TAIL))
        except OSError as error:
            raise UsageError(f"{path}: the journal cannot be read: {error.strerror}", code="journal") from error


class Server(ThreadingHTTPServer):
    """Serves `report` on a `port` of the loopback address, 0 for any that is free. Raises UsageError for one taken."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, report: LiveReport, port: int):
        self.report = report
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UsageError(
                f"--port {port}: {reason}; give another, or 0 for any that is free", code="command-line"
            ) from error

    @property
    def address(self) -> str:
        """What to open in a browser."""
        return f"http://{HOST}:{self.server_address[1]}/"

    @property
    def names(self) -> Iterator[str]:
        """What requests may call this server."""
        port = self.server_address[1]
        yield from (f"{host}{after}" for host in (HOST, "localhost") for after in (f":{port}", "")[: 1 + (port == 80)])


class _Handler(BaseHTTPRequestHandler):
    server: Server
    server_version, sys_version = "surefoot", ""
    protocol_version = "HTTP/1.1"
    timeout = _TIMEOUT_S

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self._no_such_method
        raise AttributeError(name)

    def _no_such_method(self) -> None:
        self.close_connection = True  # what it sends is not read
        self._give(405, b"only GET\n", Allow="GET, HEAD")

    def _answer(self) -> None:
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or hosts[0].lower() not in self.server.names:
            self._give(403, b"this is no server of that name\n")
        elif self.path.partition("?")[0] != "/":
            self._give(404, b"there is one page here: /\n")
        else:
            page, tag = self.server.report.page()
            same = self.headers.get("If-None-Match") == tag
            self._give(304 if same else 200, b"" if same else page, kind="text/html", ETag=tag)

    def _give(self, code: int, body: bytes, kind: str = "text/plain", **headers: str) -> None:
        self.send_response(code)
        headers |= {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError, TimeoutError):  # the reader has gone
            super().handle()

    def log_message(self, format: str, *words: object) -> None:
        """Nothing: what a request holds is not printed."""
