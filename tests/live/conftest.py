# SPDX-License-Identifier: Apache-2.0
"""The helpers that start programs and read pages are those of the process tests."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "process"))
