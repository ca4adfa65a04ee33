"""An endpoint for chat completions on this machine, which misbehaves on request."""

import json
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

#: What is done with one request.
Behaviour = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        self.do_POST()

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with self.server.lock:
            number = len(self.server.asked)
            headers = {name.lower(): value for name, value in self.headers.items()}
            self.server.asked.append({"path": self.path, "headers": headers, "body": json.loads(body or "{}")})
            self.server.under_way += 1
            self.server.most_under_way = max(self.server.most_under_way, self.server.under_way)
            self.server.changed.notify_all()
        try:
            self.server.behave(self.server.asked[number]["body"], number)(self)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # whoever asked is gone
        finally:
            with self.server.lock:
                self.server.under_way -= 1

    def send(self, status: int, content: bytes, headers: dict[str, str] | None = None):
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def completion(text: str | None, finish: str = "stop", usage: tuple[int, int] | None = (10, 5), **message) -> dict:
    """What a well-behaved endpoint says."""
    said = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text, **message}}
    counts = {"usage": {"prompt_tokens": usage[0], "completion_tokens": usage[1]}} if usage else {}
    return {"id": "c", "object": "chat.completion", "model": "tiny-1", "choices": [said], **counts}


def says(text: str | None, finish: str = "stop", usage: tuple[int, int] | None = (10, 5), **message) -> Behaviour:
    return gives(completion(text, finish, usage, **message))


def gives(value: object) -> Behaviour:
    return lambda handler: handler.send(200, json.dumps(value).encode())


def status(code: int, message: str = "", kind: str | None = None, headers: dict[str, str] | None = None) -> Behaviour:
    error = {"error": {"message": message, "type": kind, "code": None}}
    return lambda handler: handler.send(code, json.dumps(error).encode(), headers)


def raw(content: bytes, content_type: str = "application/json") -> Behaviour:
    return lambda handler: handler.send(200, content, {"Content-Type": content_type})


def waits(until: threading.Event, then: Behaviour) -> Behaviour:
    def behave(handler: Handler):
        until.wait(60)
        then(handler)

    return behave


def drips(content: bytes, pause: float) -> Behaviour:
    """A byte at a time, so that no single read takes long."""

    def behave(handler: Handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        for place in range(len(content)):
            handler.wfile.write(content[place : place + 1])
            time.sleep(pause)

    return behave


def cuts(handler: Handler):
    """Promise more than comes."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.close_connection = True


def vanishes(handler: Handler):
    """Close the connection without a word."""
    handler.close_connection = True


def floods(handler: Handler):
    """Send without end, in pieces of unsaid number."""
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    piece = b" " * 65536
    for _ in range(10_000):
        handler.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, behave: Callable[[dict, int], Behaviour]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.behave = behave
        self.lock = threading.Lock()
        self.changed = threading.Condition(self.lock)
        self.asked: list[dict] = []
        self.under_way = self.most_under_way = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def wait_for(self, requests: int):
        """Wait until so many requests have come."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.asked) >= requests, timeout=60)

    def handle_error(self, request, client_address):
        pass


def in_turn(*behaviours: Behaviour) -> Callable[[dict, int], Behaviour]:
    """One after the other; the last goes on."""
    return lambda body, number: behaviours[min(number, len(behaviours) - 1)]


@contextmanager
def llm_server(*behaviours: Behaviour, behave: Callable[[dict, int], Behaviour] | None = None):
    """Serve behaviours in turn, or what `behave` chooses for a body and the number of the request."""
    server = Server(behave or in_turn(*behaviours))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
