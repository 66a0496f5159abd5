# SPDX-License-Identifier: Apache-2.0
"""--web.config.check as a program: example files, the good ones and the bad ones with their messages.

tests/web-config/bad/NAME.txt is what is said of NAME.yml, in the directory of the file, without the program's name.
"""

import os
import pathlib
import shutil
import subprocess

import pytest

from exporter_helpers import EXPORTER

EXAMPLES = pathlib.Path(__file__).resolve().parents[1] / "web-config"
README = EXAMPLES.parents[1] / "README.md"


def openssl(directory, *arguments):
    subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True, timeout=120)


def self_signed(directory, name, *key):
    openssl(directory, "req", "-x509", *key, "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.crt", "-days", "2",
            "-subj", f"/CN={name}")
    (directory / f"{name}.key").chmod(0o600)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """The examples beside the certificates that they name."""
    path = tmp_path_factory.mktemp("web-config")
    for name in "server", "ca":
        self_signed(path, name, "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256")
    self_signed(path, "rsa", "-newkey", "rsa:2048")
    openssl(path, "pkey", "-in", "server.key", "-aes256", "-passout", "pass:x", "-out", "encrypted.key")
    (path / "encrypted.key").chmod(0o600)
    for example in EXAMPLES.glob("*/*.yml"):
        shutil.copy(example, path / f"{example.parent.name}-{example.name}")
    return path


def check(name, cwd, *flags):
    return subprocess.run([EXPORTER, "--web.config.check", f"--web.config.file={name}", *flags], cwd=cwd,
                          capture_output=True, text=True, timeout=120)


def names(kind):
    return sorted(path.stem for path in (EXAMPLES / kind).glob("*.yml"))


@pytest.mark.parametrize("name", names("good"))
def test_good(directory, name):
    done = check(f"good-{name}.yml", directory)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"good-{name}.yml is valid: ") and done.stdout.count("\n") == 1


@pytest.mark.parametrize("name", names("bad"))
def test_bad(directory, name):
    done = check(f"bad-{name}.yml", directory)
    assert (done.returncode, done.stdout) == (1, "")
    message = done.stderr.removeprefix("wideep-exporter: bad-")
    assert message == (EXAMPLES / "bad" / f"{name}.txt").read_text()


def test_says_what_is_on(directory):
    assert check("good-mutual.yml", directory).stdout == (
        "good-mutual.yml is valid: TLS on, client certificates required and verified, users: 0, extra headers: 0\n")
    assert check("good-users.yml", directory).stdout == (
        "good-users.yml is valid: TLS off, client certificates not asked for, users: 3, extra headers: 0\n")
    assert check("good-rate-limit.yml", directory).stdout == (
        "good-rate-limit.yml is valid: TLS off, client certificates not asked for, users: 0, extra headers: 0, "
        "rate limit: 20 requests at once and one every 0.1 s\n")


def test_example_of_the_readme(directory):
    """The file that README.md shows is one of the examples."""
    text = (EXAMPLES / "good" / "readme.yml").read_text()
    assert f"```yaml\n{text}```\n" in README.read_text()


def test_paths_begin_at_the_file(directory):
    done = check(directory / "good-mutual.yml", "/")
    assert (done.returncode, done.stderr) == (0, "")
    done = check(directory / "bad-certificate-missing.yml", "/")
    assert f"cert_file {directory}/missing.crt: No such file" in done.stderr


@pytest.mark.parametrize("mode, warned", [(0o600, False), (0o400, False), (0o640, True), (0o604, True), (0o644, True)])
def test_readable_key_is_a_warning(directory, tmp_path, mode, warned):
    for name in "server.crt", "server.key", "good-tls.yml":
        shutil.copy(directory / name, tmp_path / name)
    (tmp_path / "server.key").chmod(mode)
    done = check("good-tls.yml", tmp_path)
    assert done.returncode == 0
    lines = [line for line in done.stderr.splitlines() if "level=warn" in line and "chmod 600" in line]
    assert len(lines) == warned
    assert all("file=server.key" in line and f"mode={mode:04o}" in line for line in lines)


def test_inline(directory, tmp_path):
    def indented(name):
        return (directory / name).read_text().replace("\n", "\n    ").rstrip()

    path = tmp_path / "inline.yml"
    path.write_text(f"tls_server_config:\n  cert: |\n    {indented('server.crt')}\n  key: |\n    {indented('server.key')}\n"
                    f"  client_auth_type: VerifyClientCertIfGiven\n  client_ca: |\n    {indented('ca.crt')}\n")
    path.chmod(0o600)
    done = check("inline.yml", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    path.chmod(0o644)
    assert "chmod 600" in check("inline.yml", tmp_path).stderr


def test_unreadable_files(directory, tmp_path):
    assert check("none.yml", tmp_path).stderr == (
        "wideep-exporter: none.yml: No such file or directory; check --web.config.file\n")
    assert check("none/web.yml", tmp_path).stderr.endswith("; check --web.config.file\n")
    assert "is no regular file" in check(".", tmp_path).stderr
    os.mkfifo(tmp_path / "pipe.yml")
    assert "is no regular file" in check("pipe.yml", tmp_path).stderr
    (tmp_path / "large.yml").write_bytes(b"#" * (1 << 20) + b"\n")
    assert "File too large; 1 MiB is the most" in check("large.yml", tmp_path).stderr
    (tmp_path / "nul.yml").write_bytes(b"# \0\n")
    assert "holds NUL bytes" in check("nul.yml", tmp_path).stderr


def test_secrets_are_not_quoted(directory):
    """What is wrong about a hash, key or password is said without showing it."""
    for name in "user-plain-password", "user-hash-short", "user-sha512", "key-inline-garbage":
        text = (EXAMPLES / "bad" / f"{name}.yml").read_text().splitlines()[-1].partition(": ")[2]
        assert text and text not in check(f"bad-{name}.yml", directory).stderr


def test_without_a_file():
    done = subprocess.run([EXPORTER, "--web.config.check"], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "") and "--web.config.file" in done.stderr


def test_costly_hash_is_a_warning(tmp_path):
    (tmp_path / "w.yml").write_text("basic_auth_users:\n"
                                    "  quick: $2y$14$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG\n"
                                    "  slow: $2y$15$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG\n")
    done = check("w.yml", tmp_path)
    assert done.returncode == 0
    assert done.stderr.count("level=warn") == 1 and "user=slow" in done.stderr
