# SPDX-License-Identifier: Apache-2.0
"""TLS, clients' certificates, passwords and headers by --web.config.file, against curl and python's clients."""

import base64
import contextlib
import datetime
import http.client
import re
import shutil
import signal
import ssl
import threading
import time

import pytest

from exporter_helpers import exporting, shared_directory, wait_for
from web_helpers import authority, bcrypt, certificate, curl, open_raw, tls_context, web_config

SECRET = b"wideep_"


@pytest.fixture(scope="module")
def certs(tmp_path_factory):
    path = tmp_path_factory.mktemp("certs")
    for name in "ca", "strangers":
        authority(path, name)
    certificate(path, "server", "ca")
    certificate(path, "server2", "ca")
    certificate(path, "client", "ca")
    certificate(path, "expired", "ca", days="-1")
    certificate(path, "servers-only", "ca", usage="serverAuth")
    certificate(path, "stranger", "strangers")
    authority(path, "self-signed")
    return path


@pytest.fixture
def shm():
    with shared_directory() as path:
        yield path


def tls(certs, **more):
    return {"cert_file": str(certs / "server.pem"), "key_file": str(certs / "server.key"), **more}


def config(tmp_path, **sections):
    return "--web.config.file=" + str(web_config(tmp_path / "web.yml", **sections))


def ask(exporter, certs, client=None, path="/metrics", *flags):
    flags = ["--cacert", str(certs / "ca.pem"), *flags]
    if client:
        flags += ["--cert", str(certs / f"{client}.pem"), "--key", str(certs / f"{client}.key")]
    return curl(f"https://127.0.0.1:{exporter.port}{path}", *flags)


def ready(exporter, certs, client=None):
    wait_for(lambda: ask(exporter, certs, client)[0] == 200)


def test_tls(shm, tmp_path, certs):
    with exporting(shm, config(tmp_path, tls_server_config=tls(certs))) as exporter:
        ready(exporter, certs)
        status, head, body = ask(exporter, certs)
        assert status == 200 and b"wideep_build_info" in body
        assert ask(exporter, certs, None, "/-/healthy")[2] == b"ok\n"
        assert ask(exporter, certs, None, "/nowhere")[0] == 404
        # plain HTTP gets nothing, and breaks nothing
        assert curl(f"http://127.0.0.1:{exporter.port}/metrics")[0] == 0
        assert ask(exporter, certs)[0] == 200
        # the server is verified by its name: the wrong authority fails
        assert curl(f"https://127.0.0.1:{exporter.port}/", "--cacert", str(certs / "strangers.pem"))[0] == 0


def test_minimum_version(shm, tmp_path, certs):
    with exporting(shm, config(tmp_path, tls_server_config=tls(certs, min_version="TLS13"))) as exporter:
        ready(exporter, certs)
        assert ask(exporter, certs, None, "/metrics", "--tls-max", "1.2")[0] == 0
        assert ask(exporter, certs, None, "/metrics", "--tlsv1.3")[0] == 200


GOOD, NO = {"client"}, {None, "expired", "stranger", "self-signed", "servers-only"}


@pytest.mark.parametrize("kind,allowed", [
    ("RequireAndVerifyClientCert", GOOD),
    ("VerifyClientCertIfGiven", GOOD | {None}),
    ("RequireAnyClientCert", GOOD | NO - {None}),
    ("RequestClientCert", GOOD | NO),
    ("NoClientCert", GOOD | NO),
])
def test_client_certificates(shm, tmp_path, certs, kind, allowed):
    section = tls(certs, client_auth_type=kind)
    if "Verify" in kind:
        section["client_ca_file"] = str(certs / "ca.pem")
    with exporting(shm, config(tmp_path, tls_server_config=section)) as exporter:
        ready(exporter, certs, "client")
        for version in "1.2", "1.3":
            for client in GOOD | NO:
                for path in "/metrics", "/-/healthy", "/", "/nowhere":
                    status, _, body = ask(exporter, certs, client, path, "--tls-max", version)
                    if client in allowed:
                        assert status == (404 if path == "/nowhere" else 200), (client, path, version)
                    else:
                        assert status in (0, 403), (client, path, version)
                        assert SECRET not in body and b"ok" not in body, (client, path, version)
                        assert status == 0 or body.startswith(b"a valid client certificate is needed: The certificate ")
                        assert client != "expired" or b" expired certificate.\n" in body


def test_allowed_names(shm, tmp_path, certs):
    section = tls(certs, client_auth_type="RequireAndVerifyClientCert", client_ca_file=str(certs / "ca.pem"),
                  client_allowed_sans=["somebody"])
    with exporting(shm, config(tmp_path, tls_server_config=section)) as exporter:
        assert ask(exporter, certs, "client")[2] == (
            b"a valid client certificate is needed: none of its names is in client_allowed_sans\n")


def test_passwords(shm, tmp_path):
    users = {"alice": bcrypt("geheim"), "bob": bcrypt("sésame:x")}
    with exporting(shm, config(tmp_path, basic_auth_users=users)) as exporter:
        url = f"http://127.0.0.1:{exporter.port}"
        wait_for(lambda: curl(f"{url}/metrics", "-u", "alice:geheim")[0] == 200)
        for path in "/metrics", "/-/healthy", "/-/ready", "/":
            status, head, body = curl(url + path)
            assert status == 401 and re.search(r"(?m)^WWW-Authenticate: Basic realm=", head)
            assert SECRET not in body
            assert curl(url + path, "-u", "alice:geheim")[0] == 200
            assert curl(url + path, "-u", "bob:sésame:x")[0] == 200
            for wrong in "alice:", "alice:Geheim", "alice:geheim2", "bob:geheim", "eve:geheim", ":", "alice":
                assert curl(url + path, "-u", wrong if ":" in wrong else wrong + ":")[0] == 401
        # what there is is not said to who may not ask
        assert curl(f"{url}/nowhere")[0] == 401 and curl(f"{url}/metrics", "-X", "POST")[0] == 401
        for header in "Basic", "Basic !!!!", "Bearer x", "Basic " + base64.b64encode(b"alice").decode(), "Basic " + "A" * 9000:
            assert curl(f"{url}/metrics", "-H", f"Authorization: {header}")[0] == 401
        assert curl(f"{url}/nowhere", "-u", "alice:geheim")[0] == 404
        counted = r'(?m)^wideep_http_requests_total\{handler="metrics",code="401"\} \d\d'
        wait_for(lambda: re.search(counted, curl(f"{url}/metrics", "-u", "alice:geheim")[2].decode()))


def test_headers(shm, tmp_path):
    headers = {"Strict-Transport-Security": "max-age=31536000", "X-Frame-Options": "deny"}
    with exporting(shm, config(tmp_path, http_server_config={"headers": headers})) as exporter:
        exporter.scrape()
        for path in "/metrics", "/-/healthy", "/", "/nowhere":
            response, _ = exporter.get(path)
            assert {name: response.headers[name] for name in headers} == headers


def test_rate_limit(shm, tmp_path):
    """As many at once as the burst, then one in an interval: nobody else is turned away for long."""
    with exporting(shm, config(tmp_path, rate_limit={"interval": "1s", "burst": 5})) as exporter:
        began = time.monotonic()
        answered, refused = 0, None
        for _ in range(40):
            response, body = exporter.get("/")
            assert response.status in (200, 429)
            answered += response.status == 200
            refused = (response, body) if response.status == 429 else refused
        assert 5 <= answered <= 6 + time.monotonic() - began < 40
        assert refused and refused[0].headers["Retry-After"] == "1" and b"rate_limit" in refused[1]
        for probe in "/-/healthy", "/-/ready", "/lb", "/lb/metrics":
            assert exporter.get(probe)[0].status == 200
        wait_for(lambda: exporter.get("/")[0].status == 200, pause=0.5)


def test_faulty_configuration_does_not_start(shm, tmp_path):
    with pytest.raises(RuntimeError, match="exit status 1"):
        with exporting(shm, config(tmp_path, tls_server_config={"cert_file": "no", "key_file": "no"})):
            pass


# ---- reload ---------------------------------------------------------------------------------------------------


def served_certificate(exporter):
    with open_raw(exporter.port) as sock:
        context = ssl._create_unverified_context()
        with context.wrap_socket(sock) as connection:
            return connection.getpeercert(binary_form=True)


def test_renewed_certificate(shm, tmp_path, certs):
    """Its file is replaced, nobody says anything, and it is served."""
    for name in "pem", "key":
        shutil.copy(certs / f"server.{name}", tmp_path / f"my.{name}")
    with exporting(shm, config(tmp_path, tls_server_config={"cert_file": "my.pem", "key_file": "my.key"})) as exporter:
        ready(exporter, certs)
        before = served_certificate(exporter)
        for name in "pem", "key":  # between the two, they do not fit
            shutil.copy(certs / f"server2.{name}", tmp_path / f"new.{name}")
            (tmp_path / f"new.{name}").replace(tmp_path / f"my.{name}")
        wait_for(lambda: served_certificate(exporter) != before)
        ready(exporter, certs)


def logged(exporter, text):
    return [line for line in exporter.log if text in line]


def time_of(line):
    return datetime.datetime.fromisoformat(re.search(r"ts=(\S+)Z", line)[1])


def test_key_that_comes_later_than_its_certificate(shm, tmp_path, certs):
    """They are two files: that they do not fit for a moment is no fault, and one when it lasts."""
    def renew(kind):
        shutil.copy(certs / f"server2.{kind}", tmp_path / f"new.{kind}")
        (tmp_path / f"new.{kind}").replace(tmp_path / f"my.{kind}")

    for kind in "pem", "key":
        shutil.copy(certs / f"server.{kind}", tmp_path / f"my.{kind}")
    with exporting(shm, "--log.level=debug",
                   config(tmp_path, tls_server_config={"cert_file": "my.pem", "key_file": "my.key"})) as exporter:
        before = served_certificate(exporter)
        renew("pem")
        wait_for(lambda: logged(exporter, "certificate is being renewed"))
        renew("key")
        wait_for(lambda: served_certificate(exporter) != before)
        assert not logged(exporter, "is faulty")
        assert b"\nwideep_web_config_reload_failures_total 0\n" in ask(exporter, certs)[2]

        waits = len(logged(exporter, "certificate is being renewed"))
        shutil.copy(certs / "client.key", tmp_path / "my.key")
        (fault,) = wait_for(lambda: logged(exporter, "is faulty"))
        assert "my.key: it does not belong to the certificate" in fault
        first = logged(exporter, "certificate is being renewed")[waits]
        assert time_of(fault) - time_of(first) >= datetime.timedelta(seconds=9.9)
        assert ask(exporter, certs)[0] == 200
        exporter.process.send_signal(signal.SIGHUP)  # who asks is told at once
        wait_for(lambda: len(logged(exporter, "is faulty")) == 2)


def test_what_is_in_use_is_logged(shm, tmp_path, certs):
    section = tls(certs, client_auth_type="RequireAndVerifyClientCert", client_ca_file=str(certs / "ca.pem"))
    users = {"alice": bcrypt("one"), "bob": bcrypt("two")}
    with exporting(shm, config(tmp_path, tls_server_config=section, basic_auth_users=users)) as exporter:
        (line,) = logged(exporter, "web configuration in use")
        assert ' tls=on client_certificates="required and verified" users=2' in line


def test_warnings_come_once(shm, tmp_path, certs):
    """A reload says again only what is new."""
    def costly(letter):
        return f"$2y$15$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7z{letter}"

    for kind in "pem", "key":
        shutil.copy(certs / f"server.{kind}", tmp_path / f"my.{kind}")
    (tmp_path / "my.key").chmod(0o644)
    section = {"cert_file": "my.pem", "key_file": "my.key"}
    users = {"alice": costly("G"), "bob": bcrypt("two")}
    path = web_config(tmp_path / "web.yml", tls_server_config=section, basic_auth_users=users)
    with exporting(shm, f"--web.config.file={path}") as exporter:
        def reload(warned):
            loads = len(logged(exporter, "web configuration in use"))
            exporter.process.send_signal(signal.SIGHUP)
            wait_for(lambda: len(logged(exporter, "web configuration in use")) > loads)
            found = logged(exporter, "level=warn")
            assert [re.search(r"user=(\w+)|(chmod)", line)[1] for line in found] == warned

        reload([None, "alice"])
        web_config(path, tls_server_config=section, basic_auth_users={**users, "bob": costly("H")})
        reload([None, "alice", "bob"])
        web_config(path, tls_server_config=section, basic_auth_users={**users, "alice": costly("O")})
        reload([None, "alice", "bob", "alice"])


def test_faulty_reload_keeps_the_old(shm, tmp_path):
    path = web_config(tmp_path / "web.yml", basic_auth_users={"alice": bcrypt("one")})
    with exporting(shm, f"--web.config.file={path}") as exporter:
        def status(password):
            return curl(f"http://127.0.0.1:{exporter.port}/metrics", "-u", f"alice:{password}")

        wait_for(lambda: status("one")[0] == 200)
        assert b"\nwideep_web_config_reload_successful 1\n" in status("one")[2]
        path.write_text("basic_auth_users: [")
        wait_for(lambda: b"\nwideep_web_config_reload_successful 0\n" in status("one")[2])
        assert b"\nwideep_web_config_reload_failures_total 1\n" in status("one")[2]
        assert len([line for line in exporter.log if "is faulty" in line and "web.yml:" in line]) == 1
        web_config(path, basic_auth_users={"alice": bcrypt("two")})
        exporter.process.send_signal(signal.SIGHUP)
        wait_for(lambda: status("two")[0] == 200)
        assert status("one")[0] == 401
        wait_for(lambda: b"\nwideep_web_config_reload_successful 1\n" in status("two")[2])


class Asker(threading.Thread):
    """Asks over kept connections, one request after the other; any failure is one."""

    def __init__(self, exporter, certs, stop):
        super().__init__(daemon=True)
        self.port, self.context, self.stop, self.answers, self.failures = exporter.port, tls_context(certs), stop, 0, []
        self.start()

    def run(self):
        connection = None
        while not self.stop.is_set():
            try:
                if connection is None:
                    connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=60, context=self.context)
                connection.request("GET", "/metrics")
                response = connection.getresponse()
                body = response.read()
                assert response.status == 200 and b"wideep_build_info" in body
                self.answers += 1
                if response.will_close:
                    connection.close()
                    connection = None
            except Exception as error:  # noqa: BLE001
                self.failures.append(error)
                connection = None


@pytest.mark.parametrize("left", ["", "# nothing\n", "http_server_config: {}\n"])
def test_emptied_file_lays_nothing_open(shm, tmp_path, left):
    authority(tmp_path, "ca")
    certificate(tmp_path, "server", "ca")
    path = tmp_path / "web.yml"
    tls = {"cert_file": str(tmp_path / "server.pem"), "key_file": str(tmp_path / "server.key")}
    web_config(path, tls_server_config=tls, basic_auth_users={"alice": bcrypt("one")})
    with exporting(shm, f"--web.config.file={path}") as exporter:
        def status(*flags):
            return curl(f"https://127.0.0.1:{exporter.port}/metrics", "-k", *flags)[0]

        wait_for(lambda: status("-u", "alice:one") == 200)
        path.write_text(left)
        exporter.process.send_signal(signal.SIGHUP)
        wait_for(lambda: any("no longer asks for TLS" in line for line in exporter.log))
        assert status() == 401 and status("-u", "alice:one") == 200
        assert curl(f"http://127.0.0.1:{exporter.port}/metrics")[0] != 200


def test_no_request_fails_over_50_reloads(shm, tmp_path, certs):
    path = web_config(tmp_path / "web.yml", tls_server_config=tls(certs))
    with exporting(shm, f"--web.config.file={path}") as exporter:
        ready(exporter, certs)
        stop = threading.Event()
        askers = [Asker(exporter, certs, stop) for _ in range(6)]
        wait_for(lambda: all(asker.answers > 3 for asker in askers))
        certificates = set()
        for i in range(50):
            name = ("server", "server2")[i % 2]
            web_config(path, tls_server_config={"cert_file": str(certs / f"{name}.pem"),
                                                "key_file": str(certs / f"{name}.key")})
            before = sum("web configuration in use" in line for line in exporter.log)
            exporter.process.send_signal(signal.SIGHUP)
            wait_for(lambda: sum("web configuration in use" in line for line in exporter.log) > before, pause=0.01)
            certificates.add(served_certificate(exporter))
        answers = [asker.answers for asker in askers]
        wait_for(lambda: all(asker.answers > n + 3 for asker, n in zip(askers, answers)))
        stop.set()
        for asker in askers:
            asker.join(60)
        assert [asker.failures for asker in askers] == [[]] * len(askers)
        assert len(certificates) == 2
        # the old servers are gone: nothing is left of them but one current
        wait_for(lambda: exporter_threads(exporter) <= 12)


def reloads(exporter):
    return sum("web configuration in use" in line for line in exporter.log)


def test_idle_connections_end_soon_after_a_reload(shm, tmp_path):
    """In order, and so that the old server goes; a request that has begun is answered."""
    with exporting(shm, config(tmp_path)) as exporter, contextlib.ExitStack() as stack:
        exporter.scrape()
        threads = exporter_threads(exporter)
        idle, busy = ([stack.enter_context(open_raw(exporter.port)) for _ in range(20)] for _ in range(2))
        for sock in idle + busy:
            sock.sendall(b"GET /-/ready HTTP/1.1\r\nHost: h\r\n\r\n")
            assert b" 200 " in sock.recv(4096)
        for sock in busy:
            sock.sendall(b"GET /-/ready HTTP/1.1\r\n")
        exporter.process.send_signal(signal.SIGHUP)
        wait_for(lambda: reloads(exporter) > 1)
        for sock in busy:
            sock.sendall(b"Host: h\r\n\r\n")
            answer = b"".join(iter(lambda: sock.recv(4096), b""))
            assert b" 200 " in answer and b"\r\nConnection: close\r\n" in answer
        for sock in idle:
            sock.settimeout(20)
            assert sock.recv(4096) == b""  # and no reset
        wait_for(lambda: exporter_threads(exporter) == threads, 20)


def test_a_burst_of_reloads_is_few(shm, tmp_path):
    with exporting(shm, config(tmp_path)) as exporter:
        exporter.scrape()
        begin = time.monotonic()
        for i in range(100):
            exporter.process.send_signal(signal.SIGHUP)
            time.sleep(0.01)
        web_config(tmp_path / "web.yml", http_server_config={"headers": {"X-Frame-Options": "deny"}})
        exporter.process.send_signal(signal.SIGHUP)
        wait_for(lambda: exporter.get("/-/healthy")[0].headers["X-Frame-Options"] == "deny", pause=0.01)
        # the first at the start, the second at once, then one each half second
        assert reloads(exporter) <= 3 + 2 * (time.monotonic() - begin)


def exporter_threads(exporter):
    with open(f"/proc/{exporter.pid}/status", encoding="ascii") as file:
        return int(re.search(r"(?m)^Threads:\s+(\d+)", file.read())[1])
