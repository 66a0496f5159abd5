# SPDX-License-Identifier: Apache-2.0
"""Clients that are slow, broken or hostile: the daemon stays up, health answers in time, and what they took returns."""

import contextlib
import http.client
import os
import re
import resource
import select
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time

import pytest

from exporter_helpers import BUILD, Page, exporting, shared_directory, simulating, wait_for
from web_helpers import (authority, bcrypt, certificate, count_fds, curl, open_raw, resident_bytes, tls_context,
                         web_config)

SANITIZED = BUILD.name not in ("build", "clang")
# What is promised is 100 ms; a build with a sanitizer on a busy machine is given more.
PROMPT_SECONDS = 1.0 if SANITIZED else 0.1
MB = 1 << 20


@pytest.fixture(scope="module", autouse=True)
def many_descriptors():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def shm():
    with shared_directory() as path:
        yield path


@pytest.fixture
def exporter(shm):
    with exporting(shm) as exporter:
        exporter.scrape()
        yield exporter


@contextlib.contextmanager
def large_page(shm, *flags):
    """An exporter whose page is larger than what the kernel takes for a client that does not read."""
    with simulating(shm, "--layers", 60, "--experts", 256, "--passes", 20, "--linger", 600) as sim:
        sim.started()
        with exporting(shm, "--debug.per-expert", *flags) as exporter:
            wait_for(lambda: len(exporter.get()[1]) > MB)
            yield exporter


def seconds_of(ask, times=21):
    out = []
    for _ in range(times):
        begin = time.monotonic()
        ask()
        out.append(time.monotonic() - begin)
    return sorted(out)


def check_prompt(exporter, path="/-/healthy"):
    """In time as a rule. The test's own process and the other ones share the processors, hence not always."""
    def ask():
        response, _ = exporter.get(path)
        assert response.status == 200

    assert seconds_of(ask)[10] < PROMPT_SECONDS
    return True


def check_always_prompt(exporter, path):
    """Each of 21 tries in a row in time, once the machine lets it: what else runs here may delay any of them."""
    def attempt():
        def ask():
            assert exporter.get(path)[0].status == 200

        assert seconds_of(ask)[-1] < PROMPT_SECONDS
        return True

    wait_for(attempt, 30)


def anonymous_bytes(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        return int(re.search(r"(?m)^RssAnon:\s+(\d+)", file.read())[1]) * 1024


def unsent_bytes(port):
    """What the kernel holds for the clients of a port, of connections that were left to it too."""
    with open("/proc/net/tcp", encoding="ascii") as file:
        rows = [line.split() for line in file.readlines()[1:]]
    return sum(int(row[4].partition(":")[0], 16) for row in rows if int(row[1].partition(":")[2], 16) == port
               and row[3] != "0A")  # to a listening socket it is its backlog


def scrape_until_answered(exporter):
    """A page, once there is a free slot."""
    def attempt():
        response, body = exporter.get()
        return response.status == 200 and Page(body.decode())

    return wait_for(attempt)


def is_closed(sock):
    """Whether the other side has ended it, with whatever it sent before."""
    try:
        while sock.recv(65536):
            pass
    except ConnectionError:
        pass
    return True


def talk(exporter, data, end=False):
    """All that comes back."""
    with open_raw(exporter.port) as sock:
        out = b""
        # it may be reset before all is sent; what was answered can be read all the same
        with contextlib.suppress(OSError):
            sock.sendall(data)
            if end:
                sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while part := sock.recv(65536):
                out += part
        return out


GET = b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n"


# ---- slow ------------------------------------------------------------------------------------------------------


def test_three_thousand_slow_readers(shm):
    with large_page(shm) as exporter, contextlib.ExitStack() as stack:
        fds, memory = count_fds(exporter.pid), anonymous_bytes(exporter.pid)
        for _ in range(3000):
            sock = stack.enter_context(open_raw(exporter.port, receive_bytes=4096))
            sock.sendall(GET)
        check_always_prompt(exporter, "/-/healthy")
        check_always_prompt(exporter, "/-/ready")
        # 40 are sent a page at once, and of the others none more than a line
        assert unsent_bytes(exporter.port) < 40 * 256 * 1024 + 3000 * 1024
        # 48 KB for the request and 2 KB or so besides, and three further generations of pages
        if not SANITIZED:
            assert anonymous_bytes(exporter.pid) < memory + 3000 * 52 * 1024 + 64 * MB
        # those that got a slot lose it with their connections; those that were refused may stay
        wait_for(lambda: scrape_until_answered(exporter).one("wideep_http_requests_total", handler="metrics",
                                                             code="503") > 0)
        # all are cut by the exporter before their clients close them
        wait_for(lambda: scrape_until_answered(exporter).one("wideep_http_connections_cut_total",
                                                             cause="slow_reader") >= 40, 120)
        stack.close()
        wait_for(lambda: count_fds(exporter.pid) <= fds, 120)
        wait_for(lambda: unsent_bytes(exporter.port) == 0)
        if not SANITIZED:  # which keep what was freed
            wait_for(lambda: anonymous_bytes(exporter.pid) < memory + 24 * MB)
        check_prompt(exporter)


def test_one_byte_a_second(shm):
    with large_page(shm) as exporter, open_raw(exporter.port, receive_bytes=4096) as sock:
        begin = time.monotonic()
        sock.sendall(GET)

        def is_reset():
            assert sock.recv(1)  # there is more than that in this end's own kernel
            poller = select.poll()
            poller.register(sock, 0)
            return poller.poll(0)

        wait_for(is_reset, 90, pause=1)
        assert time.monotonic() - begin > 5
        exporter.wait_page(lambda page: page.one("wideep_http_connections_cut_total", cause="slow_reader") == 1)


def trickling(socks):
    """A function that sends a byte more of each one's request, and returns whether all have been cut off."""
    alive = set(socks)
    for sock in socks[:len(socks) // 3]:  # a whole request before, so that they are kept connections
        sock.sendall(b"GET /-/ready HTTP/1.1\r\nHost: h\r\n\r\n")
        assert sock.recv(4096).startswith(b"HTTP/1.1 200 ")
    for sock in socks:
        sock.sendall(b"GET /metrics HTTP/1.1\r\nX: ")

    def trickle():
        for sock in list(alive):
            sock.setblocking(False)
            try:
                sock.send(b"x")
                if sock.recv(1) == b"":
                    alive.discard(sock)
            except BlockingIOError:
                pass
            except ConnectionError:
                alive.discard(sock)
        return not alive

    return trickle


def test_slowloris_by_unix_socket(shm, tmp_path):
    with exporting(shm, f"--web.listen-address=unix:{tmp_path / 's'}") as exporter, contextlib.ExitStack() as stack:
        exporter.scrape()
        socks = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(30)]
        for sock in socks:
            sock.connect(str(tmp_path / "s"))
        wait_for(trickling(socks), 90, pause=0.5)
        exporter.wait_page(lambda page: page.one("wideep_http_connections_cut_total", cause="slow_sender") == 30)


def test_slowloris(exporter):
    """A byte now and then is activity, but no request."""
    with contextlib.ExitStack() as stack:
        trickle = trickling([stack.enter_context(open_raw(exporter.port)) for _ in range(300)])
        trickle()
        check_prompt(exporter)
        exporter.scrape()
        wait_for(trickle, 90, pause=0.5)
    exporter.wait_page(lambda page: page.one("wideep_http_connections_cut_total", cause="slow_sender") == 300)


def test_slow_body(exporter):
    with open_raw(exporter.port) as sock:
        sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\nx")
        assert is_closed(sock)
    check_prompt(exporter)


def test_silent_connection(exporter):
    with open_raw(exporter.port) as sock:
        assert is_closed(sock)


# ---- limits ----------------------------------------------------------------------------------------------------


def test_max_requests(shm):
    with large_page(shm, "--web.max-requests=2") as exporter, contextlib.ExitStack() as stack:
        for _ in range(2):
            sock = stack.enter_context(open_raw(exporter.port, receive_bytes=4096))
            sock.sendall(GET)
            assert sock.recv(10)
        response, body = exporter.get()
        assert response.status == 503 and b"too many requests" in body
        assert response.headers["Retry-After"] == "1"
        assert exporter.get("/-/healthy")[0].status == 200
        stack.close()
        scrape_until_answered(exporter)


def test_oldest_idle_is_evicted(shm):
    """At its limit of connections the daemon makes room for new ones."""
    with contextlib.ExitStack() as stack:
        exporter = stack.enter_context(exporting_within(shm, 600))
        socks = [stack.enter_context(open_raw(exporter.port)) for _ in range(1000)]
        check_prompt(exporter)
        page = exporter.wait_page(lambda page: page.one("wideep_http_connections_cut_total", cause="evicted") >= 600)
        assert page.one("process_max_fds") == 600
        exporter.wait_page(lambda page: page.one("wideep_http_connections") <= 600 - 256)
        assert is_closed(socks[0])


@contextlib.contextmanager
def exporting_within(shm, descriptors):
    """An exporter that may not have more descriptors than that: it inherits the limit."""
    with exporting(shm, prefix=("sh", "-c", f'ulimit -n {descriptors}; exec "$0" "$@"')) as exporter:
        yield exporter


def test_out_of_descriptors(exporter):
    """Nobody can be let in, which is said once; when there are descriptors again, all goes on."""
    now = count_fds(exporter.pid)
    limit = resource.prlimit(exporter.pid, resource.RLIMIT_NOFILE, (now - 1, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(open_raw(exporter.port)) for _ in range(5)]
        for sock in socks:
            sock.sendall(b"GET /-/healthy HTTP/1.1\r\nHost: h\r\n\r\n")
        wait_for(lambda: any("cannot accept connections" in line for line in exporter.log))
        resource.prlimit(exporter.pid, resource.RLIMIT_NOFILE, limit)
        for sock in socks:
            assert sock.recv(4096).startswith(b"HTTP/1.1 200 ")
    exporter.wait_page(lambda page: page.one("wideep_http_out_of_descriptors_total") > 0)
    assert sum("cannot accept connections" in line for line in exporter.log) == 1


@pytest.mark.slow
def test_ten_thousand_abandoned(exporter):
    fds, memory = count_fds(exporter.pid), resident_bytes(exporter.pid)
    for i in range(20):
        with contextlib.ExitStack() as stack:
            socks = [stack.enter_context(open_raw(exporter.port)) for _ in range(500)]
            for j, sock in enumerate(socks):
                if (i + j) % 3:
                    sock.sendall(GET if (i + j) % 3 == 1 else GET[:20])
        if i % 5 == 0:
            check_prompt(exporter)
    wait_for(lambda: count_fds(exporter.pid) <= fds, 120)
    exporter.wait_page(lambda page: page.one("wideep_http_connections_accepted_total") >= 10000)
    if not SANITIZED:  # which keep what was freed
        assert resident_bytes(exporter.pid) < memory + 24 * MB
    check_prompt(exporter)


# ---- odd -------------------------------------------------------------------------------------------------------


def test_half_closed(exporter):
    out = talk(exporter, GET, end=True)
    assert out.startswith(b"HTTP/1.1 200 ") and b"wideep_build_info" in out


def test_pipelined(exporter):
    last = b"GET /-/ready HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    out = talk(exporter, 50 * b"GET /-/healthy HTTP/1.1\r\nHost: h\r\n\r\n" + last)
    assert out.count(b"HTTP/1.1 200 OK\r\n") == 51 and out.count(b"\r\n\r\nok\n") == 50 and out.endswith(b"ready\n")


def test_old_protocol(exporter):
    out = talk(exporter, b"GET /-/healthy HTTP/1.0\r\n\r\n")
    assert re.match(rb"HTTP/1\.[01] 200 ", out) and out.endswith(b"ok\n")


def status_of(out):
    found = re.match(rb"HTTP/1\.[01] (\d+) ", out)
    return int(found[1]) if found else 0


# The status that each is answered with; 0: none, only its end.
MALFORMED = {
    "empty lines": (b"\r\n" * 5000, 0),
    "no version": (b"GET /metrics\r\n\r\n", 400),
    "strange version": (b"GET /metrics HTTP/9.9\r\n\r\n", 505),
    "old version": (b"GET /metrics HTTP/0.9\r\n\r\n", 505),
    "no method": (b" /metrics HTTP/1.1\r\nHost: h\r\n\r\n", 0),
    "method alone": (b"GET\r\n\r\n", 0),
    "random bytes": (bytes(range(256)) * 40 + b"\r\n\r\n", 400),
    "NULs": (b"\0" * 9000, 0),
    "TLS hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x55" * 500, 0),
    "header without colon": (b"GET /metrics HTTP/1.1\r\nHost: h\r\nnonsense\r\n\r\n", 400),
    "no host": (b"GET /nowhere HTTP/1.1\r\n\r\n", 400),
    "space in the target": (b"GET /nowhere?a b HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    "bad length": (b"GET /metrics HTTP/1.1\r\nHost: h\r\nContent-Length: -5\r\n\r\n", 400),
    "huge length": (b"GET /metrics HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999999999999999999\r\n\r\n", 413),
    "bad chunks": (b"POST /metrics HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n", 400),
    "long line": (b"GET /" + b"a" * 300000 + b" HTTP/1.1\r\nHost: h\r\n\r\n", 414),
    "long header": (b"GET /metrics HTTP/1.1\r\nHost: h\r\nX: " + b"a" * 300000 + b"\r\n\r\n", 431),
    "many headers": (b"GET /metrics HTTP/1.1\r\nHost: h\r\n" + b"X: y\r\n" * 60000 + b"\r\n", 431),
    "connect": (b"CONNECT h:80 HTTP/1.1\r\nHost: h\r\n\r\n", 404),
    "asterisk": (b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", 404),
    "whole address": (b"GET http://h/metrics HTTP/1.1\r\nHost: h\r\n\r\n", 200),
}


# The data stay out of the names of tests, which become a variable of the environment.
@pytest.mark.parametrize("name", MALFORMED)
def test_malformed(exporter, name):
    """An error, which is counted, or an end; what can be read as a request is answered. No harm to others, no log."""
    data, expected = MALFORMED[name]
    lines = len(exporter.log)
    assert status_of(talk(exporter, data, end=True)) == expected
    counted = {} if expected in (0, 200) else {("other", str(expected)): 1}

    def errors(page):
        return {(labels["handler"], labels["code"]): value for labels, value in page.of("wideep_http_requests_total")
                if value and labels["code"] not in ("200", "503")}

    exporter.wait_page(lambda page: errors(page) == counted)
    assert len(exporter.log) == lines
    check_prompt(exporter)


AMBIGUOUS = {
    "two lengths": b"Content-Length: 0\r\nContent-Length: 41\r\n",
    "space before the colon": b"Content-Length : 5\r\n",
    "length and chunks": b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    "another coding": b"Transfer-Encoding: gzip, chunked\r\n",
    "two hosts": b"Host: other\r\n",
    "folded length": b"Content-Length:\r\n 39\r\n",
    "name that is folded": b"Content-: 39\r\n Length\r\n",
    "folded value": b"X: y\r\n z\r\n",
    "no name, the last": b": x\r\n",
    "nothing but a colon, the last": b":\r\n",
    "a colon before another end of line": b":\n",
    "a colon between ends of lines": b"X: y\n:\r\n",
    "no name, others behind it": b": x\r\nContent-Length: 39\r\n",
    "name that is no token": b"Content-Length\x0b: 39\r\n",
    "NUL behind a length": b"Content-Length: 0\0\r\n",
    "NUL behind a coding": b"Transfer-Encoding: chunked\0, gzip\r\n",
    "NUL in a value": b"X: a\0b\r\n",
    "carriage return in a value": b"X: a\rContent-Length: 39\r\n",
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_ambiguous_framing(exporter, name):
    """What a proxy may read otherwise is refused, and nothing after it is taken for a request."""
    out = talk(exporter, b"POST /metrics HTTP/1.1\r\nHost: h\r\n" + AMBIGUOUS[name] +
               b"\r\nGET /-/ready HTTP/1.1\r\nHost: h\r\n\r\n")
    assert status_of(out) == 400 and out.count(b"HTTP/1.1 ") == 1 and b"ready" not in out


def test_headers_as_they_come(exporter):
    """Many, padded, in pieces, with either end of line, without a value: none of that is ambiguous."""
    many = b"".join(b"X-%d:%s%s\r\n" % (i, b" \t" * (i % 3), b"v" * 100) for i in range(200))
    for head in (b"Host: h\r\n" + many, b"Host:h\n", b"Host:\t h \r\nEmpty:\r\n", b"Cookie: a=b; c\r\nHost: h\r\n",
                 b"Host: [::1]:80\r\n", b"Host: \r\n"):
        # the second on the same connection, after the library has moved what it had read of it
        request = b"GET /-/ready?a=%41&b HTTP/1.1\r\n" + head + b"\r\n"
        request = request if request.endswith(b"\r\n\r\n") else request.replace(b"\r\n", b"\n")
        with open_raw(exporter.port) as sock:
            for part in range(0, 2 * len(request), 997):
                sock.sendall((request * 2)[part:part + 997])
            sock.shutdown(socket.SHUT_WR)
            out = b"".join(iter(lambda: sock.recv(65536), b""))
        # A head that does not come at once is the last of its connection.
        answers = 2 if len(request) < 997 / 2 else 1
        assert out.count(b"HTTP/1.1 200 OK") == answers and out.count(b"\r\nready\n") == answers, head


def test_nothing_is_read_after_chunks(exporter):
    """A proxy may take another line for the last of them, or of the trailer."""
    for end in b"0\r\n\r\n", b"0\r\n: x\r\n", b"0;\n\r\n":
        out = talk(exporter, b"GET /metrics HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + end +
                   b"GET /-/ready HTTP/1.1\r\nHost: h\r\n\r\n")
        assert out.count(b"HTTP/1.1 ") == 1 and not out.endswith(b"ready\n")


def test_host_and_whole_addresses(exporter):
    for head in (b"GET /-/ready HTTP/1.1\r\n\r\n", b"GET /-/ready HTTP/1.1 HTTP/1.1\r\nHost: h\r\n\r\n",
                 b"GET /-/ready HTTP/1.1\r\nHost: a b\r\n\r\n", b"GET /-/ready HTTP/1.1\r\nHost: a/b\r\n\r\n",
                 b"GET /-/ready\0x HTTP/1.1\r\nHost: h\r\n\r\n"):
        out = talk(exporter, head)
        assert status_of(out) == 400 and b"\r\nContent-Type: text/plain" in out and out.endswith(b"lack a Host\n")
    for target in b"http://h/-/ready", b"HTTP://h:80/-/ready":
        out = talk(exporter, b"GET " + target + b" HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        assert status_of(out) == 200 and out.endswith(b"ready\n")


@pytest.mark.parametrize("path", [
    "/..", "/../../etc/passwd", "/metrics/..", "/./metrics", "//metrics", "/metrics/", "/metrics%00", "/metrics%00.txt",
    "/%00", "/%2e%2e/metrics", "/-/healthy%00", "/-/", "/METRICS", "/%", "/%zz", "/\xff\xfe", "/metrics;x", "/-/healthy/x"])
def test_paths(exporter, path):
    out = talk(exporter, f"GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode("latin-1"))
    assert status_of(out) == 404


def test_bodies(exporter):
    for body in b"x", b"y" * 60000:
        response, page = exporter.get(body=body)
        assert response.status == 200 and b"wideep_build_info" in page
    chunks = b"".join(b"%x\r\n%s\r\n" % (1000, b"z" * 1000) for _ in range(1000)) + b"0\r\n\r\n"
    head = b"GET /metrics HTTP/1.1\r\nHost: h\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert status_of(talk(exporter, head + chunks)) == 413
    assert status_of(talk(exporter, head + chunks[:-5] + chunks)) in (0, 413)  # larger than is read to its end
    check_prompt(exporter)


@pytest.mark.parametrize("times", [100, 1000, 20000])
def test_many_arguments(exporter, times):
    query = "&".join("name[]=wideep_build_info" for _ in range(times))
    out = talk(exporter, f"GET /metrics?{query} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode(), end=True)
    assert status_of(out) in ((200,) if times == 100 else (0, 200, 400, 413, 414, 431))
    check_prompt(exporter)


@pytest.mark.parametrize("method,allowed", [("POST", False), ("PUT", False), ("DELETE", False), ("OPTIONS", False),
                                            ("TRACE", False), ("BREW", False), ("HEAD", True), ("get", False)])
def test_methods(exporter, method, allowed):
    for path in "/metrics", "/-/healthy", "/-/ready", "/":
        response, body = exporter.get(path, method=method)
        assert response.status == (200 if allowed else 405)
        if allowed:
            assert body == b"" and int(response.headers["Content-Length"]) > 0
        else:
            assert response.headers["Allow"] == "GET, HEAD" and body.endswith(b"\n") and len(body) < 100
    assert exporter.get("/nowhere", method=method)[0].status == 404


# ---- TLS and passwords -----------------------------------------------------------------------------------------


def test_tls_handshakes(shm, tmp_path):
    """Abandoned, garbled, and never begun."""
    authority(tmp_path, "ca")
    certificate(tmp_path, "server", "ca")
    path = web_config(tmp_path / "web.yml", tls_server_config={"cert_file": "server.pem", "key_file": "server.key"})

    def check(exporter):
        done = []

        def ask():
            connection = http.client.HTTPSConnection("127.0.0.1", exporter.port, timeout=60,
                                                     context=tls_context(tmp_path))
            connection.request("GET", "/-/healthy")
            done.append(connection.getresponse().read())
            connection.close()

        assert seconds_of(ask)[10] < 10 * PROMPT_SECONDS and set(done) == {b"ok\n"}

    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = tls_context(tmp_path).wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    hello = outgoing.read()
    with exporting(shm, f"--web.config.file={path}") as exporter:
        check(exporter)
        fds = count_fds(exporter.pid)
        with contextlib.ExitStack() as stack:
            for i in range(400):
                sock = stack.enter_context(open_raw(exporter.port))
                sock.sendall((hello, hello[:50], b"\x16\x03" + bytes(range(200)), b"")[i % 4] or b"\0")
            check(exporter)
            for i in range(100):
                with open_raw(exporter.port) as sock:
                    sock.sendall(hello)
            check(exporter)
            # renegotiation was the way to have a server compute for nothing
            client = subprocess.Popen(["openssl", "s_client", "-connect", f"127.0.0.1:{exporter.port}", "-tls1_2"],
                                      stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            with client:
                while b"Extended master secret" not in (line := client.stdout.readline()):
                    assert line
                client.stdin.write(b"R\n")
                client.stdin.flush()
                rest = client.stdout.read()  # to its end, which is the server's doing: more could be sent
                assert b"RENEGOTIATING" in rest and b"BEGIN CERTIFICATE" not in rest
            check(exporter)
            wait_for(lambda: count_fds(exporter.pid) <= fds, 90)  # they are cut, although their clients hold on


ALICE = {"Authorization": "Basic YWxpY2U6cmlnaHQ="}  # alice:right


@contextlib.contextmanager
def guessing(exporter, guesses, count, address="127.0.0.1"):
    """Clients that try wrong passwords as fast as they are answered; yields their answers' codes."""
    stop, statuses = threading.Event(), []

    def guess(i):
        while not stop.is_set():
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", exporter.port, timeout=60,
                                                               source_address=(address, 0))) as connection:
                connection.request("GET", "/metrics", headers={"Authorization": f"Basic {guesses[i % len(guesses)]}"})
                statuses.append(connection.getresponse().status)

    guessers = [threading.Thread(target=guess, args=(i,), daemon=True) for i in range(count)]
    for guesser in guessers:
        guesser.start()
    wait_for(lambda: len(statuses) > 2 * count)
    yield statuses
    stop.set()
    for guesser in guessers:
        guesser.join(60)
    assert set(statuses) <= {401, 503} and 401 in statuses


def test_guessing_before_the_first_login(shm, tmp_path):
    """Guessers at some names keep others neither from their first login nor, over a reload, from the next."""
    path = web_config(tmp_path / "web.yml", basic_auth_users={"alice": bcrypt("right"), "bob": bcrypt("other")})
    guesses = ["Ym9iOndyb25n", "ZXZlOndyb25n"]  # bob:wrong, eve:wrong
    with exporting(shm, f"--web.config.file={path}") as exporter, guessing(exporter, guesses, 24):
        assert exporter.get("/lb", headers=ALICE)[0].status == 200
        exporter.process.send_signal(signal.SIGHUP)
        wait_for(lambda: len([line for line in exporter.log if "web configuration in use" in line]) > 1)
        for _ in range(10):
            assert exporter.get("/lb", headers=ALICE)[0].status == 200


def test_guessing_at_ones_own_name(shm, tmp_path):
    """A client that guesses at a name does not keep its user, who asks from elsewhere, from the first login."""
    path = web_config(tmp_path / "web.yml", basic_auth_users={"alice": bcrypt("right", 1 << 10)})
    with exporting(shm, f"--web.config.file={path}") as exporter:
        with guessing(exporter, ["YWxpY2U6d3Jvbmc="], 24, "127.0.0.2"):  # alice:wrong
            assert exporter.get("/lb", headers=ALICE)[0].status == 200


def test_guessing(shm, tmp_path):
    """Guessers keep each other waiting, and nobody whose password is known."""
    path = web_config(tmp_path / "web.yml", basic_auth_users={"alice": bcrypt("right", 1 << 10)})
    guesses = ["YWxpY2U6d3Jvbmc=", "Ym9iOndyb25n"]  # alice:wrong, bob:wrong
    with exporting(shm, f"--web.config.file={path}") as exporter:
        wait_for(lambda: exporter.get("/-/healthy", headers=ALICE)[0].status == 200)
        with guessing(exporter, guesses, 40):

            def ask():
                assert exporter.get("/-/healthy", headers=ALICE)[0].status == 200

            # they take a processor, and the interpreter of this test another
            assert seconds_of(ask)[10] < 5 * PROMPT_SECONDS
        exporter.process.terminate()
        assert exporter.process.wait(30) == 0


# ---- load ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(SANITIZED, reason="measures the plain build")
@pytest.mark.skipif(not shutil.which("wrk"), reason="wrk is not installed")
def test_wrk(shm):
    with exporting(shm, "--web.max-requests=0") as exporter:
        exporter.scrape()
        done = subprocess.run(["wrk", "-t2", "-c256", "-d10s", f"http://127.0.0.1:{exporter.port}/metrics"],
                              capture_output=True, text=True, timeout=120, check=True)
        assert "Socket errors" not in done.stdout and "Non-2xx" not in done.stdout, done.stdout
        assert int(re.search(r"(\d+) requests in", done.stdout)[1]) > 1000
        wait_for(lambda: exporter.scrape().one("wideep_http_connections") < 5)
