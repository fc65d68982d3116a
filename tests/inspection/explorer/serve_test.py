"""What the server answers, and to whom."""

from __future__ import annotations

import contextlib
import http.client
import json
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from transformer.inspection import explorer
from transformer.inspection.explorer.serve import LONGEST, WAITING, Handler, Server

DATA = {"title": "a page", "served": None, "texts": ["<b>"]}
JSON = {"Content-Type": "application/json"}

PATHS = ["/", "*", "//", "/favicon.ico", "/{s}", "/{s}x/", "/{s}//", "/{s}/../{s}/", "/{s}/?a", "/{s}/other"]
PATHS += ["/{s}/echo/", "/x{s}/", "/{half}/", "/\xff\xfe/", "/{s}/%65cho", "http://127.0.0.1/{s}/"]
HOSTS = [[], ["evil.example:{p}"], ["127.0.0.1"], ["127.0.0.1:1"], ["127.0.0.1:{p}.evil.example"]]
HOSTS += [["localhost:{p}", "evil.example"], ["[::1]:{p}"], ["LOCALHOST:{p}"], ["127.0.0.1:{p}@evil"]]
BODIES = [b"", b"{", b"[1]", b'"text"', b"\xff\xfe{}", b'{"a": 1} 2', b"[" * 10_000, b'{"a": ' * 40_000]
BODIES += [b'{"n": ' + b"1" * 5000 + b"}"]  # more digits than Python reads

PROGRAM = """
import time
from transformer.inspection import explorer
def slow(request):
    print("running", flush=True)
    time.sleep(60)
from experiments import command
def main():
    data = {"title": "a page", "served": None}
    explorer.serve(data, {"slow": slow}, limits={}, ready=lambda url: print(url, flush=True))
command.run(main)
"""


class Running:
    """A server in a thread, and what its actions were asked."""

    def __init__(self):
        self.asked, self.go, self.at_once, self.most = [], threading.Event(), 0, 0
        self.server = Server(("127.0.0.1", 0), Handler)
        actions = {name: getattr(self, name) for name in ("echo", "refuse", "crash", "wait")}
        self.server.open(DATA, actions, {"max_texts": 3})
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        self.port, self.base = self.server.server_address[1], f"/{self.server.secret}/"

    def echo(self, request):
        self.asked.append(request)
        return {"echo": request}

    def refuse(self, request):
        raise ValueError("no\n  such   layer")

    def crash(self, request):
        raise KeyError("a secret of the program")

    def wait(self, request):
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        assert self.go.wait(20)
        self.at_once -= 1
        return {}

    def ask(self, method, path, body=None, headers=None, **more):
        """Status, headers and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        headers = (JSON if method == "POST" else {}) if headers is None else headers
        with contextlib.closing(connection):
            connection.request(method, path, body, {**headers, **more})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()

    def post(self, name, request, **headers):
        status, _, body = self.ask("POST", self.base + name, json.dumps(request).encode(), **headers)
        return status, json.loads(body)

    def raw(self, *lines, body=b""):
        """The status of a request that is sent as it is."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
            connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
            answer = connection.makefile("rb").readline()
            return int(answer.split()[1]) if answer.startswith(b"HTTP") else answer


@pytest.fixture(scope="module")
def running():
    run = Running()
    yield run
    run.go.set()
    run.server.shutdown()
    run.server.server_close()


@pytest.fixture(autouse=True)
def quiet(capfd, request):
    """No request puts a stack trace on the terminal, but for one that crashes an action."""
    yield
    err = capfd.readouterr().err
    assert ("Traceback" in err) == ("crash" in request.node.name), err


def test_the_page_is_served_with_its_policy_and_told_where_to_ask(running):
    status, headers, body = running.ask("GET", running.base)
    served = {**DATA, "served": {"base": running.base, "max_texts": 3}}
    assert status == 200 and body.decode() == explorer.page(served)
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    meta = re.search('Content-Security-Policy" content="(.*?)"', body.decode())[1].replace("&#x27;", "'")
    assert headers["Content-Security-Policy"] == f"{meta}; frame-ancestors 'none'" and "connect-src 'self'" in meta
    for host in ("127.0.0.1", "localhost"):
        assert running.ask("GET", running.base, Host=f"{host}:{running.port}")[0] == 200


def test_every_answer_says_that_nobody_may_keep_embed_or_guess_it(running):
    for answer in (
        running.ask("GET", running.base), running.ask("GET", "/"), running.ask("POST", running.base + "echo", b"{}"),
        running.ask("PUT", running.base), running.ask("POST", running.base + "echo", b"{"),
    ):  # fmt: skip
        headers = answer[1]
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cache-Control"] == "no-store" and "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert headers["Cross-Origin-Opener-Policy"] == headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        assert "Python" not in headers["Server"] and "Access-Control-Allow-Origin" not in headers


def test_actions_get_objects_and_answer_them(running):
    request = {"text": "möle \U0001f400 </script>", "layer": 3, "none": None}
    assert running.post("echo", request) == (200, {"echo": request})
    assert running.post("echo", {}, Origin=f"http://localhost:{running.port}")[0] == 200
    assert running.post("echo", {}, headers={"Content-Type": "application/json; charset=utf-8"})[0] == 200
    assert running.post("refuse", {}) == (400, {"error": "no such layer"})


def test_a_crash_tells_the_terminal_and_not_the_client(running, capfd):
    status, answer = running.post("crash", {})
    assert status == 500 and answer == {"error": "the program failed: its terminal says how"}
    err = capfd.readouterr().err
    assert "KeyError: 'a secret of the program'" in err
    print("Traceback", file=sys.stderr)  # for the fixture, since reading took it away
    assert running.post("echo", {})[0] == 200


@pytest.mark.parametrize("path", PATHS)
def test_without_the_secret_there_is_nothing(running, path):
    secret = running.server.secret
    path = path.format(s=secret, half=secret[:20])
    assert len(secret) >= 43  # 256 bits
    for method in ("GET", "POST"):
        status = running.raw(f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{running.port}", "Content-Length: 0")
        assert status == 404


@pytest.mark.parametrize("hosts", HOSTS)
def test_only_this_machines_own_names_are_served(running, hosts):
    lines = [f"Host: {host.format(p=running.port)}" for host in hosts]
    assert running.raw(f"GET {running.base} HTTP/1.1", *lines) == 403
    assert (
        running.raw(
            f"POST {running.base}echo HTTP/1.1",
            *lines,
            "Content-Type: application/json",
            "Content-Length: 2",
            body=b"{}",
        )
        == 403
    )


@pytest.mark.parametrize(
    "origin", ["null", "http://evil.example", "https://127.0.0.1:{p}", "http://127.0.0.1", "http://127.0.0.1:{p}/"]
)
def test_other_sites_cannot_ask(running, origin):
    before = len(running.asked)
    assert running.post("echo", {}, Origin=origin.format(p=running.port)) == (
        403,
        {"error": "the request comes from another site"},
    )
    assert len(running.asked) == before


@pytest.mark.parametrize(
    "kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonp"]
)
def test_forms_cannot_ask(running, kind):
    headers = {} if kind is None else {"Content-Type": kind}
    assert running.post("echo", {}, headers=headers)[0] == 415


def test_methods_are_those_of_the_contract(running):
    for method in ("PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "HEAD", "BREW"):
        assert running.ask(method, running.base)[0] == 405
    status, headers, body = running.ask("POST", running.base, b"{}")
    assert (status, headers["Allow"], json.loads(body)) == (405, "GET", {"error": "this address takes GET alone"})
    status, headers, _ = running.ask("GET", running.base + "echo")
    assert (status, headers["Allow"]) == (405, "POST")


@pytest.mark.parametrize("body", BODIES, ids=len)
def test_bodies_that_are_no_json_object_are_refused(running, body):
    status, _, answer = running.ask("POST", running.base + "echo", body)
    assert status == 400 and set(json.loads(answer)) == {"error"}


def test_large_bodies_are_refused_in_words_that_arrive(running):
    limit = {"error": f"the body may have at most {LONGEST} bytes"}
    for length in (LONGEST + 1, 8 * LONGEST):
        status, _, body = running.ask("POST", running.base + "echo", b"x" * length)
        assert status == 413 and json.loads(body) == limit
    assert running.post("echo", {"a": "x" * (LONGEST - 20)})[0] == 200
    post = [f"POST {running.base}echo HTTP/1.1", f"Host: 127.0.0.1:{running.port}", "Content-Type: application/json"]
    assert running.raw(*post, f"Content-Length: {10**30}") == 413
    for length in (
        "Content-Length: -1",
        "Content-Length: two",
        "Content-Length: ²",
        "X: none",
        "Transfer-Encoding: chunked",
    ):
        assert running.raw(*post, length) == 411


def test_damaged_requests_are_refused(running):
    assert running.raw("nonsense") == 400
    assert running.raw(f"GET {running.base} HTTP/9.9") == 505
    assert running.raw(f"GET /{'x' * 70_000} HTTP/1.1") == 414
    assert running.raw(f"GET {running.base} HTTP/1.1", *(f"X{n}: y" for n in range(200))) == 431


def test_clients_that_leave_are_not_missed(running):
    post = f"POST {running.base}echo HTTP/1.1\r\nHost: 127.0.0.1:{running.port}\r\nContent-Type: application/json\r\n"
    for sent in (
        b"",
        b"GET",
        post.encode() + b"Content-Length: 10\r\n\r\n{",
        f"GET {running.base} HTTP/1.0\r\nHost: x\r\n\r\n".encode(),
    ):
        connection = socket.create_connection(("127.0.0.1", running.port))
        connection.sendall(sent)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")  # leave with a reset
        connection.close()
    time.sleep(0.1)
    assert running.post("echo", {})[0] == 200


def test_the_model_runs_once_at_a_time_while_the_page_is_served(running):
    answers = []
    ask = lambda: answers.append(running.post("wait", {})[0])  # noqa: E731
    threads = [threading.Thread(target=ask) for _ in range(WAITING + 2)]
    for thread in threads:
        thread.start()
    while len(answers) < 2:
        time.sleep(0.01)
    assert answers == [503, 503]  # too many wait already
    assert running.ask("GET", running.base)[0] == 200
    running.go.set()
    for thread in threads:
        thread.join(20)
    assert sorted(answers) == [200] * WAITING + [503, 503] and running.most == 1


def test_a_port_that_is_taken_is_one_line(running):
    with pytest.raises(ValueError, match=f"port={running.port} cannot be had .*leave it out"):
        explorer.serve(DATA, {}, limits={}, port=running.port)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_listens_here_alone_and_ends_when_told_even_at_work(environment, number):
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment(1)}
    with subprocess.Popen([sys.executable, "-c", PROGRAM], **options) as process:
        try:
            url = process.stdout.readline().strip()
            host, port = re.fullmatch(r"http://(127\.0\.0\.1):(\d+)/[\w-]{43}/", url).groups()
            table = pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]
            listening = [row.split()[1] for row in table if f":{int(port):04X} " in row and row.split()[3] == "0A"]
            assert listening == [f"0100007F:{int(port):04X}"]  # 127.0.0.1, and no other address
            with contextlib.closing(http.client.HTTPConnection(host, int(port), timeout=20)) as connection:
                connection.request("POST", url.split(port)[1] + "slow", b"{}", JSON)
                assert process.stdout.readline() == "running\n"
                process.send_signal(number)
                out, err = process.communicate(timeout=20)
        finally:
            process.kill()
    assert (process.returncode, out, err) == (128 + number, "", "")
