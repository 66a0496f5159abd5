#!/usr/bin/python3
"""Keeps segments that this version writes, for all later versions to read: `make abi-segments`.

Once for each minor version of the ABI, and never again: what an older version wrote cannot be made anew. Writes
v<major>.<minor>/<name>.gz, and beside it v<major>.<minor>.json with what they hold: what wideep-dump says, and the
series that the exporter serves. Read the latter before it is committed: it is what later versions are held to.
"""

import gzip
import json
import pathlib
import re
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "process"))

from abi_helpers import ROOT, Writer  # noqa: E402
from test_abi_stability import dumped, lasting, served  # noqa: E402

BOOT_ID = 112 # its offset in the identity


def write(directory):
    for rank in range(2):
        with Writer() as writer:
            assert writer.create(directory, ((b"target", 3, 5, 8), (b"draft", 1, 4, 4)), ep=2, rank=rank, dp_rank=rank, dp_size=2,
                                 group=77, interval=500)[0] == 0
            assert writer.ask("pass", 0, 0, 7, 0, 1, 20) == 0
            assert writer.ask("begin", 0, 0) == 0 and writer.ask("end", 0) == 0
            assert writer.ask("pass", 0, 20, 0, 999, 1, 4) == 0
            assert writer.ask("eplb", 1, 4, 1) == 0
            for number in range(12):
                assert writer.ask("dbo", number, number % 2, number % 6, 2, 10 * number, 3) == 0
            assert writer.ask("close") == 0
    with Writer() as writer:
        assert writer.create(directory, ((b"target", 0, 0, 0),), role=2)[0] == 0
        assert writer.ask("tokens", 2**53, 12345) == 0
        assert writer.ask("close") == 0


def main():
    header = (ROOT / "shm-abi" / "wideep_shm.h").read_text()
    version = "v" + ".".join(re.search(rf"define WIDEEP_ABI_{part} +(\d+)u", header).group(1) for part in ("MAJOR", "MINOR"))
    if (HERE / f"{version}.json").exists():
        sys.exit(f"{version} is kept already")
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        write(directory)
        paths = sorted(directory.iterdir())
        for path in paths: # as they will be read: on another machine, or after its next start
            content = bytearray(path.read_bytes())
            content[BOOT_ID : BOOT_ID + 16] = bytes(range(16))
            path.write_bytes(content)
        (HERE / version).mkdir(exist_ok=True)
        for path in paths:
            (HERE / version / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))
        segments, series = served(directory)
        expected = {"dump": {path.name: lasting(dumped(path)) for path in paths},
                    "segments": sorted([*key, count] for key, count in segments.items()), "series": series}
    (HERE / f"{version}.json").write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
