# SPDX-License-Identifier: Apache-2.0
"""make install and make uninstall, of what is built already."""

import os
import pathlib
import subprocess

from exporter_helpers import BUILD

ROOT = pathlib.Path(__file__).resolve().parents[2]


def make(target, *variables):
    """The programs are not made anew: `all` counts as done."""
    env = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "DESTDIR", "PREFIX")}
    command = ["make", "-C", ROOT, "--no-print-directory", "-o", "all", target, f"B={BUILD}", *variables]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def files(root):
    return {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}


def variable(directory, name):
    env = dict(os.environ, PKG_CONFIG_PATH=str(directory))
    return subprocess.run(["pkg-config", f"--variable={name}", "wideep_shm"], env=env, capture_output=True, text=True,
                          check=True, timeout=60).stdout.strip()


def test_install_and_uninstall(tmp_path):
    make("install", f"DESTDIR={tmp_path}", "PREFIX=/usr")
    installed = files(tmp_path)
    document = "usr/share/doc/wideep-exporter/"
    assert {"usr/bin/wideep-exporter", "usr/bin/wideep-sim", "usr/bin/wideep-dump", "usr/bin/wideep-top",
            "usr/share/man/man1/wideep-top.1", "usr/include/wideep_shm.h",
            "usr/lib/libwideep_shm.so", "usr/lib/libwideep_shm.so.0", "usr/lib/pkgconfig/wideep_shm.pc",
            "usr/share/man/man8/wideep-exporter.8", "usr/share/man/man3/wideep_shm.3", document + "README.md",
            document + "CHANGELOG.md", document + "LICENSE", document + "shm-abi/README.md",
            document + "deploy/tls.md", document + "systemd/wideep-exporter.default",
            "usr/lib/systemd/system/wideep-exporter.service", "usr/lib/systemd/system/wideep-exporter.socket",
            "usr/lib/sysusers.d/wideep-exporter.conf"} <= installed
    assert subprocess.run([tmp_path / "usr/bin/wideep-dump", "--version"], timeout=60).returncode == 0
    make("uninstall", f"DESTDIR={tmp_path}", "PREFIX=/usr")
    assert list(tmp_path.iterdir()) == []


def test_the_linkers_cache_is_renewed_where_the_library_is_in_use(tmp_path):
    for destination, renewed in (("", os.geteuid() == 0), (str(tmp_path), False)):
        ran = tmp_path / "ran"
        said = make("install", f"DESTDIR={destination}", f"PREFIX={tmp_path}/prefix", f"LDCONFIG=touch {ran}").stdout
        assert ran.exists() == renewed
        assert ("run ldconfig" in said) == (not renewed and not destination)
        ran.unlink(missing_ok=True)


def test_uninstall_leaves_what_is_not_ours(tmp_path):
    other = tmp_path / "share" / "man" / "man8" / "other.8"
    make("install", f"PREFIX={tmp_path}", "LDCONFIG=true")
    other.write_text("")
    make("uninstall", f"PREFIX={tmp_path}")
    assert files(tmp_path) == {"share/man/man8/other.8"}
    assert not (tmp_path / "bin").exists()


def test_the_unit_starts_the_installed_program(tmp_path):
    make("install", f"DESTDIR={tmp_path}", "PREFIX=/opt/w", "SYSTEMD_UNITDIR=/etc/systemd/system")
    unit = (tmp_path / "etc/systemd/system/wideep-exporter.service").read_text()
    assert "\nExecStart=/opt/w/bin/wideep-exporter\n" in unit


def test_pkg_config_follows_the_directories(tmp_path):
    make("install", f"DESTDIR={tmp_path}", "PREFIX=/opt/w", "INCLUDEDIR=/opt/w/include/wideep", "LIBDIR=/lib64")
    directory = tmp_path / "lib64" / "pkgconfig"
    assert variable(directory, "includedir") == "/opt/w/include/wideep"
    assert variable(directory, "libdir") == "/lib64"
    assert "${prefix}/include/wideep" in (directory / "wideep_shm.pc").read_text()
