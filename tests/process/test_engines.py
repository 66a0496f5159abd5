# SPDX-License-Identifier: Apache-2.0
"""Engines in C and C++: the examples, built against an installation as shm-abi/engines.md says."""

import os
import re
import shutil
import subprocess

import pytest

import segment_reader
from exporter_helpers import BUILD, exporting, shared_directory
from test_install import ROOT, make

pytestmark = pytest.mark.skipif(bool(os.environ.get("WIDEEP_SAN")),
                                reason="what it is about is not built with a sanitizer")

ENGINES = ROOT / "shm-abi" / "engines.md"
EXAMPLES = ROOT / "shm-abi" / "examples"
WARNINGS = "-Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror"


def run(*command, **kwargs):
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300, **kwargs)
    assert result.returncode == 0, result.stdout
    return result.stdout


def block(language, number):
    return re.findall(rf"^```{language}\n(.*?)^```", ENGINES.read_text(), re.M | re.S)[number]


@pytest.fixture
def installed(tmp_path):
    """An installation below a prefix of its own, and the sources of the examples."""
    make("install", f"PREFIX={tmp_path}/prefix", "LDCONFIG=true")
    for source in EXAMPLES.iterdir():
        shutil.copy2(source, tmp_path)
    return tmp_path


def by_pkg_config(directory):
    env = dict(os.environ, PKG_CONFIG_PATH=str(directory / "prefix" / "lib" / "pkgconfig"))
    for number, name in enumerate(("rank_c", "rank_cxx")):
        command = re.sub(r"^(\S+)", rf"\1 {WARNINGS}", block("sh", number))
        run("sh", "-ec", command, cwd=directory, env=env)
        (directory / "rank").rename(directory / name)


def by_cmake(directory):
    (directory / "CMakeLists.txt").write_text(block("cmake", 0))
    run("cmake", "-S", directory, "-B", directory, f"-DCMAKE_PREFIX_PATH={directory / 'prefix'}",
        f"-DCMAKE_C_FLAGS={WARNINGS}", f"-DCMAKE_CXX_FLAGS={WARNINGS}")
    run("cmake", "--build", directory)


@pytest.mark.parametrize("page", ["README.md", "shm-abi/README.md"])
def test_the_pages_snippets_compile_without_a_warning(tmp_path, page):
    """The one that is no whole program becomes a function of what it names without declaring it."""
    (snippet,) = re.findall(r"^```c\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)
    include, rest = snippet.split("\n", 1)
    if "int main(" not in snippet:
        rest = ("static int engine(uint32_t ep_rank, uint64_t pass_number, const int32_t *loads,\n"
                f"                  const int32_t *physical_to_logical)\n{{\n{rest}return error;\n}}\n"
                "int main(void)\n{\nreturn engine(0, 0, NULL, NULL);\n}\n")
    (tmp_path / "snippet.c").write_text(f"{include}\n{rest}")
    for level in ("-O0", "-O2"):
        run("cc", level, "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE", f"-I{ROOT / 'shm-abi'}", "-o", tmp_path / "snippet",
            tmp_path / "snippet.c")


def expected(scale):
    """[layer][physical expert] of all passes of an example, by the formula that it stands in for an engine with."""
    return [[sum(scale(n, layer, p) for n in range(50)) for p in range(8)] for layer in range(3)]


@pytest.mark.parametrize("how", [by_pkg_config, by_cmake])
def test_a_rank_in_c_and_one_in_cxx(installed, how):
    how(installed)
    with shared_directory() as directory:
        env = {**os.environ, "WIDEEP_SHM_DIR": str(directory), "WIDEEP_INSTANCE": ""}
        run(installed / "rank_c", "0", env=env)
        run(installed / "rank_cxx", "1", env=env)
        loads = [expected(lambda n, layer, p: n + layer + p), expected(lambda n, layer, p: 2 * n + 8 * layer + p)]
        for segment, rank in zip(segment_reader.ranks_of(directory), loads):
            assert segment.closed and segment.models == [(b"example", 3, 6, 8)]
            assert segment.plane(5, 0) == [(sum(row[:4]), sum(row[4:])) for row in rank]
            assert segment.plane(6, 0) == [(row[0] + row[6], row[1] + row[7], *row[2:6]) for row in rank]
            passes, _, sync, _ = segment.model_totals(0)
            assert (passes, sum(sync)) == (50, 1)
        out = run(BUILD / "wideep-dump", env=env)
        assert "wideep.default.e0.r0" in out and "wideep.default.e0.r1" in out
        with exporting(directory) as exporter:
            total = sum(map(sum, loads[0])) + sum(map(sum, loads[1]))
            exporter.wait_page(lambda p: sum(v for _, v in p.of("wideep_eplb_rank_tokens_total")) == total)
        refused = subprocess.run([installed / "rank_c", "2"], env=env, capture_output=True, text=True, timeout=60)
        assert refused.returncode == 1 and refused.stderr.startswith("wideep: an argument is out of range")
        refused = subprocess.run([installed / "rank_cxx", "2"], env=env, capture_output=True, text=True, timeout=60)
        assert refused.returncode == 1 and "an argument is out of range" in refused.stderr


@pytest.mark.parametrize("version, found", [("0.1", True), ("0.1.0 EXACT", True), ("0.99", False), ("1.0", False),
                                            ("", True)])
def test_cmake_asks_for_a_version(installed, version, found):
    (installed / "CMakeLists.txt").write_text("cmake_minimum_required(VERSION 3.13)\nproject(p NONE)\n"
                                              f"find_package(wideep_shm {version})\n"
                                              'message(STATUS "found: ${wideep_shm_FOUND}")\n')
    out = run("cmake", "-S", installed, "-B", installed / "b", f"-DCMAKE_PREFIX_PATH={installed / 'prefix'}")
    assert f"found: {int(found)}" in out


def test_the_page_names_functions_that_exist():
    header = (ROOT / "shm-abi" / "wideep_shm.h").read_text()
    named = set(re.findall(r"`(wideep_\w+)\(\)`", ENGINES.read_text()))
    assert len(named) >= 8
    assert all(re.search(rf"^WIDEEP_API \w+ {name}\(", header, re.M) for name in named)
