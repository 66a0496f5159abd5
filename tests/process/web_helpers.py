# SPDX-License-Identifier: Apache-2.0
"""Certificates made with openssl, web configurations, and clients for them."""

import json
import os
import re
import socket
import ssl
import subprocess
import warnings

from exporter_helpers import wait_for


def openssl(directory, *arguments):
    subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True, timeout=120)


def authority(directory, name):
    openssl(directory, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout",
            f"{name}.key", "-out", f"{name}.pem", "-days", "2", "-subj", f"/CN={name}")
    (directory / f"{name}.key").chmod(0o600)


def certificate(directory, name, ca, days="2", usage="serverAuth,clientAuth"):
    openssl(directory, "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout",
            f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
    (directory / f"{name}.ext").write_text(f"subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage={usage}\n")
    openssl(directory, "x509", "-req", "-in", f"{name}.csr", "-CA", f"{ca}.pem", "-CAkey", f"{ca}.key",
            "-CAcreateserial", "-days", days, "-extfile", f"{name}.ext", "-out", f"{name}.pem")
    (directory / f"{name}.key").chmod(0o600)


def bcrypt(password, rounds=16):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import crypt
        return crypt.crypt(password, crypt.mksalt(crypt.METHOD_BLOWFISH, rounds=rounds))


def curl(url, *flags):
    """Status (0: no answer), headers and body."""
    done = subprocess.run(["curl", "-s", "-i", "--max-time", "60", *flags, url], capture_output=True, timeout=120)
    head, _, body = done.stdout.partition(b"\r\n\r\n")
    found = re.match(rb"HTTP/[\d.]+ (\d+)", head)
    return int(found[1]) if found else 0, head.decode("latin-1"), body


def web_config(path, **sections):
    """JSON is YAML."""
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps(sections))
    new.replace(path)
    return path


def open_raw(port, family=socket.AF_INET, receive_bytes=None):
    sock = socket.socket(family, socket.SOCK_STREAM)
    if receive_bytes:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    sock.settimeout(60)
    sock.connect(("127.0.0.1", port))
    return sock


def tls_context(directory, ca="ca", client=None):
    context = ssl.create_default_context(cafile=str(directory / f"{ca}.pem"))
    if client:
        context.load_cert_chain(directory / f"{client}.pem", directory / f"{client}.key")
    return context


def count_fds(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def resident_bytes(pid):
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096


def wait_fds(pid, most, seconds=60):
    wait_for(lambda: count_fds(pid) <= most, seconds)
