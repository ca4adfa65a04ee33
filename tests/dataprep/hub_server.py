"""A hub on this machine: one repository out of a folder, with the few answers that its clients ask for."""

import hashlib
import json
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Handler(BaseHTTPRequestHandler):
    """`id` is the repository's; `gated` ones are refused to everybody; `kind` is datasets or models."""

    protocol_version = "HTTP/1.1"

    def __init__(self, *arguments, folder: Path, id: str, gated: bool, kind: str):
        self.folder, self.id, self.gated, self.kind = folder, id, gated, kind
        super().__init__(*arguments)

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def do_POST(self):
        self.asked = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer()

    def answer(self):
        path = unquote(urlsplit(self.path).path)
        prefix = "/datasets" if self.kind == "datasets" else ""
        repository, api = f"{prefix}/{self.id}/resolve/", f"/api/{self.kind}/{self.id}"
        if not path.startswith((repository, api)):
            self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif self.gated:
            self.send(401, b'{"error": "Access is restricted"}', {"X-Error-Code": "GatedRepo"})
        elif path.startswith(repository):
            self.file(path.removeprefix(repository).partition("/")[2])
        else:
            self.api(path.removeprefix(api).strip("/").split("/"))

    def file(self, name: str):
        path = self.folder / name
        if not path.is_file():
            self.send(404, b"{}", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        content = path.read_bytes()
        tag = hashlib.sha256(content).hexdigest()
        self.send(200, content, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"})

    def api(self, words: list[str]):
        if words[0] == "tree":
            found = sorted((self.folder / "/".join(words[2:])).rglob("*"))
        elif words[0] == "paths-info":
            asked = json.loads(self.asked)["paths"]
            found = [self.folder / name for name in asked if name and (self.folder / name).exists()]
        else:
            siblings = [{"rfilename": self.name(path)} for path in self.folder.rglob("*") if path.is_file()]
            info = {"id": self.id, "sha": COMMIT, "private": False, "tags": [], "downloads": 0, "likes": 0}
            self.json({**info, "siblings": siblings})
            return
        self.json([self.entry(path) for path in found])

    def entry(self, path: Path) -> dict:
        common = {"path": self.name(path), "oid": "0" * 40, "lastCommit": None, "security": None}
        if path.is_dir():
            return {"type": "directory", "size": 0, **common}
        return {"type": "file", "size": path.stat().st_size, **common}

    def name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def json(self, value):
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def send(self, code: int, content: bytes, headers: dict[str, str]):
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def hub_server(folder: Path, id: str, gated: bool = False, kind: str = "datasets"):
    """Serve a folder as the repository `id`; gives the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, folder=folder, id=id, gated=gated, kind=kind))
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
