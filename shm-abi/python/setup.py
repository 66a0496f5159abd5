# SPDX-License-Identifier: Apache-2.0
"""Builds the binding from the ABI header, which lies one directory up in a checkout, beside this file in an sdist."""

import pathlib
import shutil
import sys

from setuptools import Extension, setup
from setuptools.command.sdist import sdist

HERE = pathlib.Path(__file__).resolve().parent
HEADER = next(path for path in (HERE / "wideep_shm.h", HERE.parent / "wideep_shm.h") if path.exists())

# One binary for all later Pythons. The buffer protocol is in the stable ABI since 3.11; before, it is one binary each.
STABLE = sys.version_info >= (3, 11)


class SdistWithHeader(sdist):
    def make_release_tree(self, base_dir, files):
        super().make_release_tree(base_dir, files)
        shutil.copy2(HEADER, base_dir)


binding = Extension(
    "wideep._binding",
    ["src/_binding.c"],
    include_dirs=[str(HEADER.parent)],
    depends=[str(HEADER)],
    define_macros=[("_GNU_SOURCE", None)] + ([("Py_LIMITED_API", "0x030b0000")] if STABLE else []),
    extra_compile_args=["-std=gnu11", "-O3", "-fvisibility=hidden"],
    py_limited_api=STABLE,
)

setup(
    ext_modules=[binding],
    cmdclass={"sdist": SdistWithHeader},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if STABLE else {},
)
