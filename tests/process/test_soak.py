# SPDX-License-Identifier: Apache-2.0
"""One minute of tests/soak."""

import os
import subprocess
import sys

import pytest

from abi_helpers import ROOT
from exporter_helpers import BUILD


@pytest.mark.slow
def test_soak():
    done = subprocess.run([sys.executable, ROOT / "tests/soak/soak.py", "--build", BUILD, "--seconds",
                           os.environ.get("SOAK_SECONDS", "60"), "--seed", "1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    print(done.stdout)
