"""An https server on the loopback address that answers as badly as a test wants."""

from __future__ import annotations

import contextlib
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

# Self-signed, for 127.0.0.1 alone; its key protects nothing.
CERTIFICATE = Path(__file__).parent.parent / "data" / "loopback_certificate.pem"

Answer = Callable[[BaseHTTPRequestHandler], None]


def body(content: bytes) -> Answer:
    """Answers 200 with the content."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    return answer


def redirect(address: str) -> Answer:
    """Answers 302 with the address."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(302)
        request.send_header("Location", address)
        request.send_header("Content-Length", "0")
        request.end_headers()

    return answer


class Loopback:
    """A running server: `answers[path]` says how a path is answered (404 otherwise), `requests` lists the paths asked for."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.requests: list[str] = []
        self.address = ""

    @contextlib.contextmanager
    def running(self) -> Iterator[Loopback]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests.append(self.path)
                if answer := outer.answers.get(self.path):
                    with contextlib.suppress(OSError):  # the client may hang up on a bad answer
                        answer(self)
                else:
                    self.send_error(404)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                pass

        server = Server(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATE)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        self.address = f"https://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
