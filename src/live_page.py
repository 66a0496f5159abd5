"""Prints the header live_page.h: the bytes of live.html, and the policy that lets its script and its style run, by hash."""

import base64
import hashlib
import pathlib
import re

page = (pathlib.Path(__file__).parent / "live.html").read_bytes()


def source(element):
    (content,) = re.findall(rb"<%b>(.*?)</%b>" % (element, element), page, re.S)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode()}'"


print("/* Generated. */")
print("#define LIVE_POLICY \\")
print(f"    \"default-src 'none'; script-src {source(b'script')}; style-src {source(b'style')}; \" \\")
print("    \"connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'\"")
print("static const char live_source[] = {")
for at in range(0, len(page), 24):
    print("    " + " ".join(f"{byte}," if byte < 128 else f"{byte - 256}," for byte in page[at:at + 24]))
print("};")
