# SPDX-License-Identifier: Apache-2.0
"""The source tarball is the same twice, and has nothing that was built."""

import os
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no git checkout, which make dist lists the files of")


def run(*command, check=True, **kwargs):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("WIDEEP_", "MAKE", "MFLAGS"))}
    done = subprocess.run([str(x) for x in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env,
                          timeout=600, stdin=subprocess.DEVNULL, **kwargs)
    assert not check or done.returncode == 0, done.stdout[-3000:]
    return done.stdout


def test_tarball_is_the_same_twice():
    tarball = ROOT / run("make", "-s", "-C", ROOT, "dist").strip()
    first = tarball.read_bytes()
    # Times and modes of a checkout are its owner's own.
    (ROOT / "README.md").touch()
    run("make", "-s", "-C", ROOT, "dist")
    assert tarball.read_bytes() == first
    names = run("tar", "-tzf", tarball).split()
    assert {name.partition("/")[0] for name in names} == {tarball.name.removesuffix(".tar.gz")}
    assert not any("/build/" in name for name in names)
