"""That no later version breaks what this one's users have: libwideep_shm.so against its baseline, and segments that
older versions wrote.

A difference from the baseline is either compatible (a function more), then `make abi-baseline` renews it, or it is not,
then SOVERSION moves too: shm-abi/README.md, "Versions"."""

import gzip
import json
import platform
import re
import subprocess

import pytest

from abi_helpers import ROOT, Segment, program
from exporter_helpers import OWN, exporting

BASELINE = ROOT / "tests" / "abi" / "libwideep_shm.abi"
SEGMENTS = ROOT / "tests" / "abi" / "segments"
# abidiff's exit status, bit by bit
CHANGED, INCOMPATIBLE = 4, 8


def library(directory, header=lambda text: text, exports=lambda text: text):
    """libwideep_shm.so with the debug information that abidiff reads, whatever the build was made with."""
    for name, change in (("wideep_shm.h", header), ("wideep_shm.map", exports), ("wideep_shm.c", lambda text: text)):
        (directory / name).write_text(change((ROOT / "shm-abi" / name).read_text()))
    subprocess.run(["gcc", "-std=gnu11", "-D_GNU_SOURCE", "-g", "-O1", "-fPIC", "-shared", "-Wl,-soname,libwideep_shm.so.0",
                    "-Wl,--version-script=wideep_shm.map", "-o", "libwideep_shm.so", "wideep_shm.c"],
                   cwd=directory, check=True, timeout=120)
    return directory / "libwideep_shm.so"


def difference(path):
    if platform.machine() != "x86_64":
        pytest.skip("the baseline is of x86-64")
    result = subprocess.run(["abidiff", str(BASELINE), str(path)], capture_output=True, text=True, timeout=300)
    assert result.returncode & ~(CHANGED | INCOMPATIBLE) == 0, result.stdout + result.stderr
    return result.returncode, result.stdout


@pytest.mark.slow
def test_library_is_as_its_baseline(tmp_path):
    assert difference(library(tmp_path)) == (0, "")


def replaced(old, new):
    def change(text):
        assert old in text
        return text.replace(old, new)
    return change


@pytest.mark.slow
@pytest.mark.parametrize("name, header, exports, status", [
    ("a field moved", replaced("    uint32_t phase;                              /* enum wideep_phase */\n    uint32_t outcome;  ",
                               "    uint32_t outcome;\n    uint32_t phase;  "), None, CHANGED),
    ("a struct grew", replaced("    uint32_t reserved;          /* 0 */\n    double avg", "    uint64_t reserved;\n    double avg"),
     None, CHANGED),
    ("a parameter is wider", replaced("wideep_ubatch_bucket(uint32_t tokens)", "wideep_ubatch_bucket(uint64_t tokens)"), None,
     CHANGED),
    ("a function went", None, replaced("local: *;", "local: wideep_skip_pass; *;"), CHANGED | INCOMPATIBLE),
    ("a function came", None, replaced("global: ", "global: wideep_i_sweep; "), CHANGED),
])
def test_a_changed_library_is_told(tmp_path, name, header, exports, status):
    same = lambda text: text
    found, text = difference(library(tmp_path, header or same, exports or same))
    assert found == status and text


def test_nothing_internal_is_exported():
    names = subprocess.run(["nm", "-D", "--defined-only", program("libwideep_shm.so")], check=True, capture_output=True, text=True,
                           timeout=60).stdout.split()[2::3]
    assert "wideep_create" in names
    assert [name for name in names if not name.startswith("wideep_") or name.startswith("wideep_i_")] == []


# ---- segments of older versions -----------------------------------------------------------------------------------


def kept(version, directory):
    """Unpacks the segments that a version wrote; returns what is expected of them."""
    expected = json.loads((SEGMENTS / f"{version}.json").read_text())
    for packed in (SEGMENTS / version).glob("*.gz"):
        (directory / packed.stem).write_bytes(gzip.decompress(packed.read_bytes()))
    assert sorted(expected["dump"]) == sorted(path.name for path in directory.iterdir())
    return expected


def served(directory):
    """The series that speak of the engines, once the exporter has seen each file."""
    count = len(list(directory.iterdir()))
    with exporting(directory) as exporter:
        page = exporter.wait_page(lambda page: sum(page.segments().values()) == count)
        return page.segments(), {name: value for name, value in page.items() if not OWN.match(name)}


def dumped(path):
    result = subprocess.run([program("wideep-dump"), "--json", str(path)], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)["segments"][0]


def lasting(dump):
    """What a segment says of itself, wherever it lies and whoever has it."""
    return {name: value for name, value in dump.items() if name not in ("file", "owner")}


def agrees(found, expected):
    """Has the found value all that was expected? Later versions may say more."""
    if isinstance(expected, dict):
        return all(name in found and agrees(found[name], value) for name, value in expected.items())
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(agrees, found, expected))
    return found == expected


VERSIONS = sorted(path.stem for path in SEGMENTS.glob("v*.json"))


def test_each_minor_version_is_kept():
    header = (ROOT / "shm-abi" / "wideep_shm.h").read_text()
    major, minor = (re.search(rf"define WIDEEP_ABI_{part} +(\d+)u", header).group(1) for part in ("MAJOR", "MINOR"))
    assert f"v{major}.{minor}" in VERSIONS, "make abi-segments keeps those of this version"


@pytest.mark.parametrize("version", VERSIONS)
def test_kept_segments_are_read(tmp_path, version):
    expected = kept(version, tmp_path)
    for name, dump in expected["dump"].items():
        assert agrees(dumped(tmp_path / name), dump), name
        Segment(tmp_path / name)
    segments, series = served(tmp_path)
    assert sorted([*key, count] for key, count in segments.items()) == expected["segments"]
    assert {name: series.get(name) for name in expected["series"]} == expected["series"]


def test_a_changed_word_is_told(tmp_path):
    """That what is expected covers the planes: one token more in the last of them is seen."""
    expected = kept(VERSIONS[0], tmp_path)
    path = next(path for path in tmp_path.iterdir() if path.name.endswith(".r0"))
    section = Segment(path).sections[6]
    content = bytearray(path.read_bytes())
    content[section["offset"]] ^= 1
    path.write_bytes(content)
    assert not agrees(dumped(path), expected["dump"][path.name])
