# SPDX-License-Identifier: Apache-2.0
"""The page in every format and encoding, read by parsers that are not ours: prometheus_client's two, promtool,
python3-protobuf by a descriptor made here, gzip, and a real Prometheus. curl asks for them.
"""
import contextlib
import gzip
import http.client
import http.server
import json
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import urllib.parse
import urllib.request

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from exporter_helpers import OWN, exporting, key, shared_directory, simulating, wait_for

TEXT = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=underscores"
OLDER = "application/openmetrics-text; version=0.0.1; charset=utf-8; escaping=underscores"
PROTOBUF = ("application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited; "
            "escaping=underscores")
ASK = {"text": "text/plain", "openmetrics": "application/openmetrics-text",
       "protobuf": "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"}
HOSTILE = b'a"b\\c\nd{e}=,\xc3\xbc\xff'
NEWEST = "wideep_snapshot_timestamp_seconds"


@pytest.fixture(scope="module")
def exporter():
    """Of engines that have run and idle now, so that nothing moves but the exporter's own figures."""
    with shared_directory() as shm, exporting(shm, "--collect.interval=500ms", "--throughput.interval=1s",
                                              "--debug.per-expert", "--debug.duration=1h",
                                              "--debug.max-duration=1h") as exporter:
        with simulating(shm, "--engines", 2, "--ranks", 2, "--layers", 4, "--experts", 16, "--passes-per-second", 100,
                        "--passes", 300, "--model", HOSTILE, "--linger", 3600) as sim:
            expected = sim.expected()
            exporter.wait_page(lambda page: all(page.get(name) is not None for name in expected) and
                               page.of("vllm:expert_load_per_expert_tokens_DEBUG"))
            # The last interval has ended with no token in it.
            exporter.wait_page(lambda page: all(value == 0 for _, value in
                                                page.of("vllm:generation_throughput_toks_per_s")))
            yield exporter


# ---- parsers ----------------------------------------------------------------------------------------------------


def put(out, name, labels, value):
    assert key(name, **labels) not in out, f"{name} {labels} comes twice"
    out[key(name, **labels)] = value


def read_lines(parse, body):
    out = {}
    for family in parse(body.decode("utf-8")):
        for sample in family.samples:
            assert sample.timestamp is None and sample.exemplar is None
            put(out, sample.name, sample.labels, sample.value)
    return out


def metric_family_class():
    """MetricFamily of io.prometheus.client, as far as we have it."""
    kinds = descriptor_pb2.FieldDescriptorProto
    scalar = {"string": kinds.TYPE_STRING, "double": kinds.TYPE_DOUBLE, "uint64": kinds.TYPE_UINT64}
    file = descriptor_pb2.FileDescriptorProto(name="t.proto", package="t", syntax="proto2")
    kind = file.enum_type.add(name="MetricType")
    for number, name in enumerate(("COUNTER", "GAUGE", "SUMMARY", "UNTYPED", "HISTOGRAM")):
        kind.value.add(name=name, number=number)
    for message, fields in {
            "LabelPair": [("name", 1, "string"), ("value", 2, "string")],
            "Gauge": [("value", 1, "double")],
            "Counter": [("value", 1, "double")],
            "Bucket": [("cumulative_count", 1, "uint64"), ("upper_bound", 2, "double")],
            "Histogram": [("sample_count", 1, "uint64"), ("sample_sum", 2, "double"), ("bucket", 3, "*Bucket")],
            "Metric": [("label", 1, "*LabelPair"), ("gauge", 2, "Gauge"), ("counter", 3, "Counter"),
                       ("timestamp_ms", 6, "uint64"), ("histogram", 7, "Histogram")],
            "MetricFamily": [("name", 1, "string"), ("help", 2, "string"), ("type", 3, "!MetricType"),
                             ("metric", 4, "*Metric")]}.items():
        made = file.message_type.add(name=message)
        for name, number, what in fields:
            field = made.field.add(name=name, number=number)
            field.label = kinds.LABEL_REPEATED if what[0] == "*" else kinds.LABEL_OPTIONAL
            if what in scalar:
                field.type = scalar[what]
            else:
                field.type = kinds.TYPE_ENUM if what[0] == "!" else kinds.TYPE_MESSAGE
                field.type_name = ".t." + what.lstrip("*!")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.MessageFactory(pool).GetPrototype(pool.FindMessageTypeByName("t.MetricFamily"))


METRIC_FAMILY = metric_family_class()


def families_of(body):
    at = 0
    while at < len(body):
        length = shift = 0
        while True:
            byte, at = body[at], at + 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        family = METRIC_FAMILY()
        assert at + length <= len(body) and family.ParseFromString(body[at:at + length]) == length
        at += length
        family.DiscardUnknownFields()
        assert family.ByteSize() == length, "fields that those messages do not have"
        yield family


def read_protobuf(body):
    """The series that the messages stand for."""
    out = {}
    for family in families_of(body):
        assert family.help and family.metric
        for metric in family.metric:
            labels = {pair.name: pair.value for pair in metric.label}
            assert len(labels) == len(metric.label) and not metric.HasField("timestamp_ms")
            if family.type == 4:
                histogram = metric.histogram
                for bucket in histogram.bucket:
                    put(out, f"{family.name}_bucket", {**labels, "le": str(bucket.upper_bound)},
                        bucket.cumulative_count)
                put(out, f"{family.name}_bucket", {**labels, "le": "+Inf"}, histogram.sample_count)
                put(out, f"{family.name}_count", labels, histogram.sample_count)
                put(out, f"{family.name}_sum", labels, histogram.sample_sum)
            else:
                kind = {0: "counter", 1: "gauge"}[family.type]
                assert metric.HasField(kind) and getattr(metric, kind).HasField("value")
                put(out, family.name, labels, getattr(metric, kind).value)
    return out


READ = {"text": lambda body: read_lines(parse_text, body),
        "openmetrics": lambda body: read_lines(parse_openmetrics, body), "protobuf": read_protobuf}


def get(exporter, form, encoding=None, path="/metrics"):
    headers = {"Accept": ASK[form], **({"Accept-Encoding": encoding} if encoding else {})}
    response, body = exporter.get(path, headers=headers)
    assert response.status == 200
    return response, body


def of_one_snapshot(fetch):
    """What `fetch` returns, {name: series}, once all are of the same collection."""
    def attempt():
        out = fetch()
        return len({series[NEWEST] for series, *_ in out.values()}) == 1 and out

    return wait_for(attempt, pause=0.01)


# ---- formats ----------------------------------------------------------------------------------------------------


def test_all_formats_have_the_same_series(exporter):
    def fetch():
        bodies = {form: get(exporter, form)[1] for form in ASK}
        return {form: (READ[form](body), body) for form, body in bodies.items()}

    pages = of_one_snapshot(fetch)
    text, openmetrics, protobuf = (pages[form][0] for form in ("text", "openmetrics", "protobuf"))
    assert text == openmetrics == protobuf
    assert len(text) > 400 and any(name.startswith("vllm:expert_load_per_expert_tokens_DEBUG{") for name in text)
    assert key("wideep_ep_size", group=0, model_name=HOSTILE.decode("utf-8", "replace")) in text


def test_openmetrics_to_the_letter(exporter):
    body = get(exporter, "openmetrics")[1].decode("utf-8")
    lines = body.split("\n")
    assert lines[-2:] == ["# EOF", ""] and body.count("# EOF") == 1 and "" not in lines[:-1]
    for line in lines[:-2]:
        assert re.match(r"# (HELP|TYPE) [a-zA-Z_:][\w:]* \S", line) or re.fullmatch(r"[a-zA-Z_:][\w:]*(\{.*\})? \S+", line)
    types = dict(line.split(" ")[2:] for line in lines if line.startswith("# TYPE "))
    assert types["vllm:dbo_fallout"] == types["process_cpu_seconds"] == "counter"
    assert not [name for name in types if name.endswith(("_total", "_created"))] and "_created" not in body
    assert 'le="256.0"' in body and 'le="+Inf"' in body
    # The lines of samples are those of the text format.
    samples = {line.rsplit(" ", 1)[0] for line in lines if line and line[0] != "#"}
    text = get(exporter, "text")[1].decode("utf-8").splitlines()
    assert samples == {line.rsplit(" ", 1)[0] for line in text if line[0] != "#"}


def test_protobuf_names_and_types(exporter):
    families = {family.name: family for family in families_of(get(exporter, "protobuf")[1])}
    assert families["vllm:dbo_fallout_total"].type == 0 and families["vllm:dbo_active"].type == 1
    histogram = families["vllm:ubatch_token_count"]
    assert histogram.type == 4 and [b.upper_bound for b in histogram.metric[0].histogram.bucket] == [
        2.0 ** n for n in range(14)]


def test_promtool_reads_the_text(exporter):
    body = get(exporter, "text")[1]
    result = subprocess.run(["promtool", "check", "metrics"], input=body, capture_output=True, timeout=60, check=False)
    assert result.returncode in (0, 3), result.stderr  # 3: opinions on names


# ---- negotiation, as curl sees it -------------------------------------------------------------------------------


def curl(exporter, *flags, path="/metrics"):
    """Status, headers by lower-case name, body."""
    url = f"http://127.0.0.1:{exporter.port}{path}"
    result = subprocess.run(["curl", "-sSig", "--max-time", "60", *flags, url], capture_output=True, timeout=90, check=True)
    head, _, body = result.stdout.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    return int(lines[0].split(" ")[1]), {k.lower(): v for k, v in (x.split(": ", 1) for x in lines[1:])}, body


OM, PB = "application/openmetrics-text", ASK["protobuf"]
ACCEPTS = [
    (f"{OM};version=1.0.0;escaping=allow-utf-8;q=0.6,{OM};version=0.0.1;q=0.5,text/plain;version=1.0.0;"
     "escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2", OPENMETRICS),
    (f"{PB};q=0.7,{OM};version=1.0.0;escaping=allow-utf-8;q=0.6,{OM};version=0.0.1;q=0.5,text/plain;version=1.0.0;"
     "escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2", PROTOBUF),
    (f"{OM};version=1.0.0,{OM};version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1", OPENMETRICS),
    (f"{OM}; version=0.0.1,text/plain;version=0.0.4;q=0.5,*/*;q=0.1", OLDER),
    (f"{PB},{OM};version=1.0.0,text/plain;version=0.0.4;q=0.5", PROTOBUF),
    ("*/*", TEXT), ("", TEXT), ("text/plain", TEXT), (f"{OM};q=0.1,text/plain", TEXT), ("text/plain;q=0,*/*", OPENMETRICS),
    ("application/json", TEXT), ("*/*;q=0", TEXT), (";;,=\",\x7f" + "x" * 3000, TEXT)]


@pytest.mark.parametrize("accept, expected", ACCEPTS)
def test_accept(exporter, accept, expected):
    flag = f"Accept: {accept}" if accept else "Accept:"  # the latter leaves the header out
    status, headers, body = curl(exporter, "-H", flag)
    assert (status, headers["content-type"]) == (200, expected)
    assert "content-encoding" not in headers and headers["vary"] == "Accept, Accept-Encoding"
    assert int(headers["content-length"]) == len(body) > 1000
    form = {TEXT: "text", PROTOBUF: "protobuf"}.get(expected, "openmetrics")
    assert NEWEST in READ[form](body)
    status, head, body = curl(exporter, "-I", "-H", flag)
    assert (status, head["content-type"], body) == (200, expected, b"")
    assert int(head["content-length"]) > 1000


def test_lines_of_one_header_are_one_list(exporter):
    with exporter.connection() as connection:
        connection.putrequest("GET", "/metrics", skip_accept_encoding=True)
        for name, value in (("Accept", "image/png"), ("Accept", "application/openmetrics-text;version=1.0.0"),
                            ("Accept-Encoding", "br"), ("Accept-Encoding", "gzip")):
            connection.putheader(name, value)
        connection.endheaders()
        response = connection.getresponse()
        assert response.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
        assert response.headers["Content-Encoding"] == "gzip" and response.read()


@pytest.mark.parametrize("accept, expected", [
    ("gzip", True), ("gzip, deflate, br, zstd", True), ("*", True), ("identity;q=0", True), ("gzip;q=0.5, identity;q=0.1", True),
    ("zstd", False), ("deflate, br", False), ("gzip;q=0", False), ("*;q=0", False), ("identity, gzip;q=0.1", False),
    ("gzip;q=0, *", False), ("gzip;q=junk", False)])
def test_accept_encoding(exporter, accept, expected):
    for path in ("/metrics", "/metrics?name[]=wideep_rank_up"):
        status, headers, body = curl(exporter, "-H", f"Accept-Encoding: {accept}", path=path)
        assert (status, headers.get("content-encoding"), headers["content-type"]) == (200, "gzip" if expected else None, TEXT)
        assert int(headers["content-length"]) == len(body)
        assert "wideep_rank_up" in (gzip.decompress(body) if expected else body).decode()
        status, head, body = curl(exporter, "-I", "-H", f"Accept-Encoding: {accept}", path=path)
        assert (status, head.get("content-encoding"), body) == (200, headers.get("content-encoding"), b"")


# ---- compression ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ASK)
def test_compressed_page_is_the_page(exporter, form):
    def fetch():
        plain, packed = get(exporter, form)[1], get(exporter, form, "gzip")[1]
        assert len(packed) * 3 < len(plain)
        return {"plain": (READ[form](plain), plain), "packed": (READ[form](gzip.decompress(packed)), gzip.decompress(packed))}

    pages = of_one_snapshot(fetch)
    assert pages["plain"][1] == pages["packed"][1]


def test_made_at_most_once_for_a_snapshot():
    """Many clients, each in two formats; the counts are those of the snapshots."""
    seen, requests = set(), []

    def client(exporter, until):
        with exporter.connection() as connection:
            while not until.is_set():
                for form in ("text", "openmetrics"):
                    connection.request("GET", "/metrics", headers={"Accept": ASK[form], "Accept-Encoding": "gzip"})
                    body = gzip.decompress(connection.getresponse().read())
                    requests.append(form)
                    seen.add(re.search(rb"\nwideep_snapshot_timestamp_seconds (\S+)\n", body).group(1))

    with shared_directory() as shm, exporting(shm, "--collect.interval=300ms") as exporter:
        until = threading.Event()
        clients = [threading.Thread(target=client, args=(exporter, until)) for _ in range(8)]
        for thread in clients:
            thread.start()
        wait_for(lambda: len(seen) >= 5 and len(requests) >= 200)
        until.set()
        for thread in clients:
            thread.join()
        # Two more collections: the newest of them has counted all that those clients asked for.
        first = exporter.scrape()[NEWEST]
        page = exporter.wait_page(lambda page: page[NEWEST] > first)
        compressed = page["wideep_compress_duration_seconds_count"]
        assert 0 < compressed <= 2 * len(seen) and len(requests) >= 200
        for form in ("text", "openmetrics"):
            assert page[key("wideep_render_duration_seconds_count", format=form)] <= len(seen) + 2
        assert page[key("wideep_render_duration_seconds_count", format="protobuf")] == 0


def newest_of(exporter, path):
    return READ["text"](get(exporter, "text", path=path)[1])[NEWEST]


def test_slow_readers_hold_four_generations():
    """Connections that read nothing keep the snapshot that they are being sent; the page is then one of theirs."""
    only = f"/metrics?name[]={NEWEST}"
    with shared_directory() as shm, exporting(shm, "--collect.interval=50ms") as exporter, contextlib.ExitStack() as slow:
        for _ in range(6):
            before = newest_of(exporter, only)
            wait_for(lambda: newest_of(exporter, only) > before, pause=0.01)
            reader = slow.enter_context(socket.socket())
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reader.connect(("127.0.0.1", exporter.port))
            # More pages than the kernel's buffers take.
            reader.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                reader.send(b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n" * 2000)

        def stands_still():
            whole = newest_of(exporter, "/metrics")
            moved = newest_of(exporter, only)
            assert moved > whole + 0.5, "the collector goes on"
            return newest_of(exporter, "/metrics") == whole

        wait_for(stands_still)
        slow.close()
        wait_for(lambda: newest_of(exporter, "/metrics") >= newest_of(exporter, only) - 0.5)


# ---- name[] -----------------------------------------------------------------------------------------------------


def names_of(exporter, form, *names, quote=True):
    query = "&".join(f"name[]={n}" for n in names)
    path = "/metrics?" + (urllib.parse.quote(query, safe="=&") if quote else query)
    return {name.partition("{")[0] for name in READ[form](get(exporter, form, path=path)[1])}


@pytest.mark.parametrize("form", ASK)
def test_names(exporter, form):
    assert names_of(exporter, form, "wideep_rank_up") == {"wideep_rank_up"}
    assert names_of(exporter, form, "wideep_rank_up", "nope", "wideep_rank_up", "wideep_ep_size", quote=False) == {
        "wideep_rank_up", "wideep_ep_size"}
    assert names_of(exporter, form, "vllm:dbo_fallout_total") == names_of(exporter, form, "vllm:dbo_fallout") == {
        "vllm:dbo_fallout_total"}
    histogram = {f"vllm:ubatch_token_count_{part}" for part in ("bucket", "sum", "count")}
    for name in ("", "_bucket", "_sum", "_count"):
        assert names_of(exporter, form, f"vllm:ubatch_token_count{name}") == histogram
    for query in ("name[]=nope", "name[]=", "name[]", "name[]=wideep_rank", "name[]=wideep_rank_up_total"):
        response, body = get(exporter, form, path=f"/metrics?{query}")
        assert body == (b"# EOF\n" if form == "openmetrics" else b"")
        assert int(response.getheader("Content-Length")) == len(body)
    # Other arguments are none of this page's.
    assert len(get(exporter, form, path="/metrics?name=wideep_rank_up&x")[1]) > 1000


def test_series_are_those_of_the_whole_page(exporter):
    def fetch():
        return {"whole": (READ["text"](get(exporter, "text")[1]),),
                "part": (READ["text"](get(exporter, "text", path=f"/metrics?name[]={NEWEST}&name[]=vllm:dbo_active")[1]),)}

    pages = of_one_snapshot(fetch)
    (whole,), (part,) = pages["whole"], pages["part"]
    assert len(part) == 5 and part.items() <= whole.items()


def test_names_render_no_whole_page():
    with shared_directory() as shm, exporting(shm, "--collect.interval=50ms") as exporter:
        path = f"/metrics?name[]=wideep_render_duration_seconds&name[]={NEWEST}&name[]=wideep_http_requests_total"

        def counted():
            series = READ["text"](get(exporter, "text", path=path)[1])
            assert all(value == 0 for name, value in series.items() if name.startswith("wideep_render"))
            return series[key("wideep_http_requests_total", code=200, handler="metrics")] >= 20

        wait_for(counted, pause=0)


def test_large_selections_are_made_once():
    """Few of them in a snapshot, so that nobody keeps the server busy with rendering; others are told so."""
    with shared_directory() as shm, simulating(shm, "--layers", 500, "--engines", 5, "--experts", 5, "--passes", 5,
                                               "--linger", 300) as sim:
        sim.expected()
        with exporting(shm, "--collect.interval=60s") as exporter:
            ask = lambda *names: get(exporter, "text", path="/metrics?" + "&".join(
                f"name[]={name}" for name in ("wideep_eplb_rank_tokens_total", *names)))
            first = ask()[1]
            assert len(READ["text"](first)) == 5 * 500
            assert ask()[1] == first
            others = ["wideep_rank_up", "wideep_ep_size", "wideep_build_info", "wideep_eplb_blocked"]
            statuses = [exporter.get("/metrics?name[]=wideep_eplb_rank_tokens_total&name[]=" + name)[0].status
                        for name in others]
            assert statuses == [200, 200, 200, 503]
            assert ask()[1] == first and ask(others[0])[1] != first
            assert exporter.get("/metrics?name[]=" + others[3])[0].status == 200


def test_many_names(exporter):
    """As many as a request line holds."""
    query = "&".join("name[]=wideep_rank_up" if n % 2 else f"name[]=no{n}" for n in range(200))
    assert names_of(exporter, "text", *(x.partition("=")[2] for x in query.split("&")), quote=False) == {"wideep_rank_up"}


# ---- the limit on series ----------------------------------------------------------------------------------------


def test_limit_counts_what_the_page_shows(exporter):
    directory = exporter.directory
    with exporting(directory, "--collect.interval=100ms") as other:
        full = other.wait_page(lambda page: page.of("wideep_rank_up"))
    own = len(full) - len(full.engine_series())
    with exporting(directory, "--collect.interval=100ms", f"--limit.series={len(full)}") as other:
        page = other.wait_page(lambda page: page.engine_series() == full.engine_series())
        assert page.one("wideep_series_dropped") == 0
    # Absent series take no place: what is on the page is as many as there may be, or a histogram's fewer.
    with exporting(directory, "--collect.interval=100ms", f"--limit.series={own + 100}") as other:
        page = other.wait_page(lambda page: page.one("wideep_series_dropped") > 0)
        assert own + 100 - 17 <= len(page) <= own + 100
        assert page.engine_series() <= full.engine_series() and len(page) - len(page.engine_series()) == own
        assert page.one("wideep_series_dropped") == len(full) - len(page)
        first = page[NEWEST]
        later = other.wait_page(lambda later: later[NEWEST] > first)
        assert later.keys() == page.keys()


# ---- a real Prometheus ------------------------------------------------------------------------------------------


class Forward(http.server.BaseHTTPRequestHandler):
    """GET /text asks for /metrics with the Accept of that format, whatever the client accepts."""
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.server.exporter_port, timeout=60)
        with contextlib.closing(connection):
            connection.request("GET", "/metrics", headers={"Accept": ASK[self.path[1:]], "Accept-Encoding": "gzip"})
            answer = connection.getresponse()
            body = answer.read()
        self.send_response(answer.status)
        for name in ("Content-Type", "Content-Encoding", "Content-Length"):
            self.send_header(name, answer.getheader(name))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def forwarding(port):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Forward)
    server.exporter_port, server.daemon_threads = port, True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def prometheus(jobs):
    """The address of a Prometheus that takes protobuf too. jobs: {name: (port, path)}."""
    with contextlib.ExitStack() as stack:
        work = stack.enter_context(tempfile.TemporaryDirectory(prefix="wideep-pages-test."))
        config, log = f"{work}/prometheus.yml", f"{work}/log"
        with open(config, "w", encoding="utf-8") as file:
            json.dump({"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": [
                {"job_name": job, "metrics_path": path, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
                for job, (port, path) in jobs.items()]}, file)
        for attempt in range(3):  # another may take the port first
            port = free_port()
            with open(log, "wb") as out:
                process = subprocess.Popen(
                    ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={work}/tsdb{attempt}",
                     f"--web.listen-address=127.0.0.1:{port}", "--enable-feature=native-histograms"],
                    stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=work)
            stack.callback(process.wait)
            stack.callback(process.kill)

            def ready():
                with contextlib.suppress(OSError):
                    return urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=10).status == 200
                return process.poll() is not None

            wait_for(ready)
            if process.poll() is None:
                break
        assert process.poll() is None, open(log, "rb").read()[-1000:]
        yield f"http://127.0.0.1:{port}"


def ask(address, query):
    url = f"{address}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)["data"]["result"]


def series_in(address, job):
    out = {}
    for row in ask(address, f'{{job="{job}"}}'):
        labels = {k: v for k, v in row["metric"].items() if k not in ("__name__", "job", "instance")}
        put(out, row["metric"]["__name__"], labels, row["value"][1])
    return {name: value for name, value in out.items() if not re.match("up$|scrape_", name)}


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed (Debian: prometheus)")
def test_prometheus_reads_every_format(exporter):
    before = exporter.scrape()[key("wideep_render_duration_seconds_count", format="protobuf")]
    with forwarding(exporter.port) as port, prometheus(
            {"direct": (exporter.port, "/metrics"), **{form: (port, f"/{form}") for form in ASK}}) as address:
        jobs = ["direct", *ASK]

        def all_up():
            up = {row["metric"]["job"]: row["value"][1] for row in ask(address, "up")}
            assert up == {job: "1" for job in jobs}
            return True

        wait_for(all_up)

        def equal():
            page = READ["text"](get(exporter, "text")[1])
            have = {job: series_in(address, job) for job in jobs}
            for job in jobs:
                assert have[job].keys() == page.keys(), (job, sorted(have[job].keys() ^ page.keys())[:5])
            still = [name for name in page if not OWN.match(name)]
            for job in jobs:
                bad = [(name, have[job][name], page[name]) for name in still if float(have[job][name]) != page[name]]
                assert not bad and len(still) > 300, (job, bad[:5])
            return True

        wait_for(equal)
        # Left to itself it took protobuf, and goes on; the count comes with the next collection.
        wait_for(lambda: exporter.scrape()[key("wideep_render_duration_seconds_count", format="protobuf")] > before)
