"""A stand-in for the Hugging Face hub on loopback: what its own library asks of it, and what it may answer instead."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

TOKEN = "hf_of_a_test"


class Hub:
    """Repositories in memory. `fails` is what it does in place of answering a path that holds `at`: a status, or a cut.

    Files are LFS objects from 1,000 bytes on; a commit is the whole of it or nothing.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.commits: list[tuple[str, str]] = []
        self.objects: dict[str, bytes] = {}
        self.private: set[str] = set()
        self.asked: list[str] = []
        self.fails: int | str = 0
        self.at = "/api/"
        self.address = ""

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Status, and an answer as JSON or bytes."""
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            if name in self.repositories:
                return 409, {"error": "You already created this model repo", "url": f"{self.address}/{name}"}
            self.repositories[name] = {}
            private = asked.get("private") or asked.get("visibility") == "private"
            self.private |= {name} if private else set()
            return 200, {"url": f"{self.address}/{name}"}
        if path == "/api/validate-yaml":
            front = json.loads(body)["content"].split("---")[1]
            fine = isinstance(yaml.safe_load(front), dict)
            return (200, {"errors": [], "warnings": []}) if fine else (400, {"errors": [{"message": "no mapping"}]})
        if method == "PUT" and path.startswith("/lfs/"):
            oid = path.rpartition("/")[2]
            if hashlib.sha256(body).hexdigest() != oid:
                return 400, {"error": "another hash"}
            self.objects[oid] = body
            return 200, {}
        name = next((name for name in self.repositories if f"/{name}" in path), None)
        if name is None:
            return 404, {"error": "Repository not found"}
        kept = self.repositories[name]
        if "/preupload/" in path:
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["size"] >= 1000 else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return 200, {"files": files}
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**entry, "actions": {"upload": {"href": f"{self.address}/lfs/{entry['oid']}"}}}
                for entry in json.loads(body)["objects"]
            ]
            return 200, {"transfer": "basic", "objects": objects}
        if "/commit/" in path:
            return self.commit(name, kept, [json.loads(line) for line in body.decode().splitlines() if line.strip()])
        if "/resolve/" in path:
            file = path.partition("/resolve/")[2].partition("/")[2].partition("?")[0]
            return (200, kept[file]) if file in kept else (404, {"error": "Entry not found"})
        if "/tree/" in path:
            return 200, [
                {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for file, data in kept.items()
            ]
        return 200, {"id": name, "sha": "0" * 40, "siblings": [{"rfilename": file} for file in kept]}

    def commit(self, name: str, kept: dict[str, bytes], lines: list[dict[str, Any]]) -> tuple[int, Any]:
        new = dict(kept)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                new[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.objects:
                    return 400, {"error": f"{value['path']} was not uploaded"}
                new[value["path"]] = self.objects[value["oid"]]
        kept.update(new)
        self.commits.append((name, lines[0]["value"]["summary"]))
        return 200, {"commitUrl": f"{self.address}/{name}/commit/{'0' * 40}", "commitOid": "0" * 40, "success": True}


@contextlib.contextmanager
def running() -> Iterator[Hub]:
    """A hub that answers until the block ends."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            hub.asked.append(f"{self.command} {self.path}")
            failing = hub.fails and hub.at in self.path
            if failing and hub.fails == "cut":
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b'{"half')
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            authorised = self.path.startswith("/lfs/") or self.headers.get("Authorization") == f"Bearer {TOKEN}"
            status, answer = hub.answer(self.command, self.path, body) if not failing else (hub.fails, {"error": "no"})
            if not authorised:
                status, answer = 401, {"error": "Invalid username or password."}
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(int(status))
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            if "/resolve/" in self.path:
                self.send_header("X-Repo-Commit", "0" * 40)
                self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_HEAD = serve

        def log_message(self, *words: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
