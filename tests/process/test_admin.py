# SPDX-License-Identifier: Apache-2.0
"""The admin API: per-expert series switched on and off at run time."""

import base64
import crypt
import json
import time

import pytest

from exporter_helpers import exporting, shared_directory, simulating, wait_for

PATH = "/-/debug/per-expert"
SERIES = "vllm:expert_load_per_expert_tokens_DEBUG"
STEADY = ["--scenario", "steady", "--engines", 1, "--passes-per-second", 100, "--passes", 100000]


@pytest.fixture
def shm():
    with shared_directory() as path:
        yield path


@pytest.fixture
def admin(shm):
    with exporting(shm, "--web.enable-admin-api", "--debug.max-duration=10m") as exporter:
        yield exporter


def call(exporter, method="GET", query="", **kwargs):
    response, body = exporter.get(PATH + query, method, **kwargs)
    if response.status != 200:
        assert response.getheader("Content-Type").startswith("text/plain") and body.endswith(b"\n")
        return response.status, body.decode()
    assert response.getheader("Content-Type") == "application/json"
    return 200, json.loads(body)


def layers_on_page(page):
    return {labels["layer"] for labels, _ in page.of(SERIES)}


def logged(exporter, message):
    return [line for line in exporter.log if f'msg="{message}"' in line]


def test_off_by_default(shm):
    with exporting(shm) as exporter:
        for method in ("GET", "POST", "DELETE"):
            status, text = call(exporter, method)
            assert status == 403 and "--web.enable-admin-api" in text


def test_arguments_in_a_body_are_refused(admin):
    for method in ("POST", "DELETE"):
        status, text = call(admin, method, body=b"duration=10s")
        assert status == 400 and "query" in text
    assert call(admin) == (200, {"on": False})


def test_on_for_a_time(shm, admin):
    with simulating(shm, *STEADY):
        admin.wait_page(lambda page: page.of("vllm:eplb_avg_tokens_per_rank") and not page.of(SERIES))
        assert call(admin) == (200, {"on": False})
        status, answer = call(admin, "POST", "?duration=2m")
        assert (status, answer["on"], answer["layers"]) == (200, True, "all")
        assert 60 < answer["seconds_left"] <= 120 and abs(answer["until"] - time.time() - answer["seconds_left"]) < 60
        assert answer["by"].startswith("127.0.0.1:")
        page = admin.wait_page(lambda page: page.of(SERIES))
        assert layers_on_page(page) == {labels["layer"] for labels, _ in page.of("vllm:eplb_avg_tokens_per_rank")}
        status, now = call(admin)
        assert now["by"] == answer["by"] and now["on"] and now["seconds_left"] <= answer["seconds_left"]
        (line,) = logged(admin, "per-expert series switched on")
        assert f"by={answer['by']} duration=120s layers=all" in line
        assert call(admin, "DELETE") == (200, {"on": False})
        admin.wait_page(lambda page: not page.of(SERIES))
        assert call(admin) == (200, {"on": False})
        (line,) = logged(admin, "per-expert series switched off")
        assert " by=127.0.0.1:" in line


def test_it_ends_by_itself(shm, admin):
    with simulating(shm, *STEADY):
        admin.wait_page(lambda page: page.of("vllm:eplb_avg_tokens_per_rank"))
        assert call(admin, "POST", "?duration=3s")[0] == 200
        admin.wait_page(lambda page: page.of(SERIES), pause=0.01)
        admin.wait_page(lambda page: not page.of(SERIES))
        assert call(admin) == (200, {"on": False})
        assert logged(admin, "per-expert series ended")


def test_layers(shm, admin):
    with simulating(shm, *STEADY, "--layers", 6):
        for query, expected, said in (("?layer=1,3-4", {"1", "3", "4"}, "1,3-4"), ("?layer=5", {"5"}, "5"),
                                      ("?layer=2,511", {"2"}, "2,511"), ("", set("012345"), "all")):
            status, answer = call(admin, "POST", query)
            assert (status, answer["layers"]) == (200, said)
            admin.wait_page(lambda page, expected=expected: layers_on_page(page) == expected)
        assert call(admin, "POST", "?layer=100")[0] == 200
        admin.wait_page(lambda page: not page.of(SERIES))


def test_default_duration(shm):
    with exporting(shm, "--web.enable-admin-api", "--debug.duration=100s") as exporter:
        assert 0 < call(exporter, "POST")[1]["seconds_left"] <= 100


def test_flag_and_api(shm):
    with exporting(shm, "--web.enable-admin-api", "--debug.per-expert") as exporter, simulating(shm, *STEADY):
        assert call(exporter)[1]["by"] == "--debug.per-expert"
        exporter.wait_page(lambda page: page.of(SERIES))
        assert call(exporter, "DELETE")[0] == 200
        exporter.wait_page(lambda page: not page.of(SERIES))


@pytest.mark.parametrize("query, says", [
    ("?duration=10m1s", "600s that --debug.max-duration allows"), ("?duration=999999h", "--debug.max-duration"),
    ("?duration=0", "such as 30s"), ("?duration=", "such as 30s"), ("?duration=5", "such as 30s"),
    ("?duration=1ms", "1s or more"), ("?duration=999ms", "1s or more"),
    ("?duration=-5s", "such as 30s"), ("?duration=99999999999999999999s", "such as 30s"),
    ("?layer=", "3,7-9"), ("?layer=x", "3,7-9"), ("?layer=512", "3,7-9"), ("?layer=4-2", "3,7-9"),
    ("?layers=3", "duration and layer"), ("?duration=5s&Layer=3", "duration and layer")])
def test_refused(admin, query, says):
    status, text = call(admin, "POST", query)
    assert status == 400 and says in text and text.count("\n") == 1
    assert call(admin) == (200, {"on": False})


@pytest.mark.parametrize("headers, refused", [
    ({}, False),
    ({"Origin": "http://127.0.0.1:{port}", "Sec-Fetch-Site": "same-origin"}, False),
    ({"Origin": "http://127.0.0.1:{port}"}, False),
    ({"Origin": "https://WIDE.example", "Host": "wide.EXAMPLE"}, False),
    ({"Sec-Fetch-Site": "none"}, False),
    ({"Origin": "http://evil.example"}, True),
    ({"Origin": "http://127.0.0.1"}, True),
    ({"Origin": "http://127.0.0.1:{port}.evil.example"}, True),
    ({"Origin": "null"}, True),
    ({"Origin": ""}, True),
    ({"Origin": "127.0.0.1:{port}"}, True),
    ({"Sec-Fetch-Site": "cross-site"}, True),
    ({"Origin": "http://127.0.0.1:{port}", "Sec-Fetch-Site": "cross-site"}, True)])
def test_pages_of_other_sites(admin, headers, refused):
    """A browser would ask with its user's address and password; it says for whose page. Looking is not changing."""
    headers = {name: value.format(port=admin.port) for name, value in headers.items()}
    for method in ("POST", "DELETE"):
        assert call(admin, "POST")[0] == 200
        status, answer = call(admin, method, headers=headers)
        assert status == (403 if refused else 200)
        assert not refused or "another site" in answer
        assert call(admin, headers=headers)[1]["on"] is (refused or method == "POST")


def test_other_methods(admin):
    response, _ = admin.get(PATH, "PUT")
    assert response.status == 405
    assert set(response.getheader("Allow").split(", ")) == {"GET", "HEAD", "POST", "DELETE"}


def test_who_by_password(shm, tmp_path):
    config = tmp_path / "web.yml"
    config.write_text("basic_auth_users:\n  alice: " + crypt.crypt("secret", crypt.mksalt(
        crypt.METHOD_BLOWFISH, rounds=16)) + "\n")
    with exporting(shm, "--web.enable-admin-api", f"--web.config.file={config}") as exporter:
        assert exporter.get(PATH, "POST")[0].status == 401
        token = base64.b64encode(b"alice:secret").decode()
        status, answer = call(exporter, "POST", headers={"Authorization": "Basic " + token})
        assert status == 200 and answer["by"].startswith("alice@127.0.0.1:")
        wait_for(lambda: [line for line in logged(exporter, "per-expert series switched on")
                          if f" by={answer['by']} " in line])
