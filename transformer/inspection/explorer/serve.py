"""A page on this machine alone, whose buttons ask a model: HTTP on 127.0.0.1 behind a secret in the address.

Other pages in the browser can reach the port, but do not know the secret, and must not become the page's origin: Host
is checked against rebinding of names, Origin and the kind of content against forms and scripts of other sites, and no
page may frame this one.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import socketserver
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler

from transformer.inspection.explorer.packing import Json
from transformer.inspection.explorer.page import BUNDLE, page, policy, read

ADDRESS = "127.0.0.1"
LONGEST = 2**18  # bytes of a request's body
WAITING = 8  # requests at a time, the one that runs among them
PATIENCE = 20  # seconds for a client to send or take something
NOTHING = "default-src 'none'; frame-ancestors 'none'"
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
}

Action = Callable[[Json], Json]


def serve(
    data: Json,
    actions: Mapping[str, Action],
    *,
    limits: Json,
    port: int = 0,
    ready: Callable[[str], None] = print,
) -> None:
    """Answer until interrupted.

    Args:
      data: what `page` shows.
      actions: by name, from a request, a JSON object, to its answer; they run one at a time. A ValueError is the
        client's and goes back to it in one line; anything else is the server's, which says so and no more.
      limits: what the page is told beside its base.
      port: 0 takes any that is free.
      ready: called with the page's address.

    Raises:
      ValueError: if the port cannot be had.
    """
    try:
        server = Server((ADDRESS, port), Handler)
    except OSError as error:
        raise ValueError(f"port={port} cannot be had ({error.strerror}): leave it out for one that is free") from None
    with server:
        server.open(data, actions, limits)
        ready(server.url)
        server.serve_forever(poll_interval=0.1)


class Server(socketserver.ThreadingTCPServer):
    """Where the requests of one page meet the actions."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 32

    def open(self, data: Json, actions: Mapping[str, Action], limits: Json) -> None:
        """Make the page, under an address of its own."""
        self.secret = secrets.token_urlsafe(32)
        self.actions = dict(actions)
        served = {**data, "served": {"base": f"/{self.secret}/", **limits}}
        self.page = page(served).encode()
        self.policy = f"{policy(*read(BUNDLE), served=True)}; frame-ancestors 'none'"
        self.running, self.places = threading.Lock(), threading.BoundedSemaphore(WAITING)

    @property
    def hosts(self) -> tuple[str, ...]:
        """What a browser on this machine may call it."""
        port = self.server_address[1]
        return f"{ADDRESS}:{port}", f"localhost:{port}"

    @property
    def url(self) -> str:
        """The page's address."""
        return f"http://{self.hosts[0]}/{self.secret}/"

    def handle_error(self, request, client_address) -> None:
        """A client that went away is no error; anything else is shown here."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


class Refused(Exception):
    """A request that gets no answer, and why."""

    def __init__(self, status: HTTPStatus, said: str, **headers: str):
        super().__init__(said)
        self.status, self.said, self.headers = status, said, headers


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server
    server_version, sys_version = "explorer", ""
    default_request_version = "HTTP/1.0"  # an older one would be answered without headers
    timeout = PATIENCE

    def do_GET(self) -> None:
        """The page."""
        self._answer("GET")

    def do_POST(self) -> None:
        """An action."""
        self._answer("POST")

    def _answer(self, method: str) -> None:
        try:
            self._check_host()
            name = self._name()
            wanted = "POST" if name else "GET"
            if method != wanted:
                raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, f"this address takes {wanted} alone", Allow=wanted)
            if name:
                self._send_json(HTTPStatus.OK, self._act(self.server.actions[name]))
            else:
                self._send(HTTPStatus.OK, "text/html; charset=utf-8", self.server.page, self.server.policy)
        except Refused as refused:
            self._send_json(refused.status, {"error": refused.said}, **refused.headers)
            self._drain()

    def _check_host(self) -> None:
        if self.headers.get_all("Host", []) not in [[host] for host in self.server.hosts]:
            raise Refused(HTTPStatus.FORBIDDEN, f"the Host must be {' or '.join(self.server.hosts)}")

    def _name(self) -> str:
        """What is asked for: the name of an action, or nothing for the page."""
        _, secret, *rest = [*self.path.split("/"), ""]
        known = secrets.compare_digest(secret.encode(), self.server.secret.encode())
        if known and len(rest) == 2 and (rest[0] in self.server.actions or not rest[0]):
            return rest[0]
        raise Refused(HTTPStatus.NOT_FOUND, "there is nothing here: open the address that the program printed")

    def _act(self, action: Action) -> Json:
        request = self._request()
        if not self.server.places.acquire(blocking=False):
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "the model is busy with earlier requests: try again later")
        try:
            with self.server.running:
                return action(request)
        except ValueError as error:
            raise Refused(HTTPStatus.BAD_REQUEST, " ".join(str(error).split())) from None
        except Exception:
            traceback.print_exc()
            raise Refused(HTTPStatus.INTERNAL_SERVER_ERROR, "the program failed: its terminal says how") from None
        finally:
            self.server.places.release()

    def _request(self) -> Json:
        """The body, once it may be read."""
        origins = self.headers.get_all("Origin", [])
        if any(origin not in [f"http://{host}" for host in self.server.hosts] for origin in origins):
            raise Refused(HTTPStatus.FORBIDDEN, "the request comes from another site")
        if self.headers.get_content_type() != "application/json":
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the body must be application/json")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdecimal()) or "Transfer-Encoding" in self.headers:
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "the body must come with a Content-Length")
        if len(length) > 12 or int(length) > LONGEST:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body may have at most {LONGEST} bytes")
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise ConnectionAbortedError
        try:
            request = json.loads(body.decode("utf-8"), parse_constant=float)
        except (ValueError, RecursionError):
            raise Refused(HTTPStatus.BAD_REQUEST, "the body is no JSON in UTF-8") from None
        if not isinstance(request, dict):
            raise Refused(HTTPStatus.BAD_REQUEST, "the body must be a JSON object")
        return request

    def _send_json(self, status: HTTPStatus, content: Json, **headers: str) -> None:
        body = json.dumps(content, allow_nan=False).encode()
        self._send(status, "application/json", body, NOTHING, **headers)

    def _send(self, status: HTTPStatus, kind: str, body: bytes, policy: str, **headers: str) -> None:
        self.send_response(status)
        own = {"Content-Type": kind, "Content-Length": str(len(body)), "Content-Security-Policy": policy}
        for name, value in {**own, **HEADERS, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _drain(self) -> None:
        """Read on for a while: a connection that is closed over unread bytes takes its answer with it."""
        left = 64 * LONGEST
        with contextlib.suppress(OSError):  # the client is gone, or says no more
            self.connection.settimeout(1)
            self.connection.shutdown(socket.SHUT_WR)
            while left > 0 and (count := len(self.rfile.read1(2**16))):
                left -= count

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the library refuses by itself, in the same form: methods without a name here, damaged requests."""
        status = HTTPStatus.METHOD_NOT_ALLOWED if code == HTTPStatus.NOT_IMPLEMENTED else HTTPStatus(code)
        self.close_connection = True
        self._send_json(status, {"error": status.phrase}, Allow="GET, POST")

    def log_message(self, *arguments) -> None:
        """Say nothing: addresses hold the secret."""
