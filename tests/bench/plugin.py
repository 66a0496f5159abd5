"""The vLLM plugin: what it adds to an engine's forward pass, beside gauges of the same loads (`peer.….pass`)."""

import os

from programs import ROOT, clean_environment, need_module, python, samples

VLLM = ROOT / "tests/vllm"


def measure(settings, report):
    need_module("numpy", "python3-numpy")
    if not settings.has_distribution:
        report.note("the vLLM plugin is left out: make bench has not built the distribution wideep")
        return
    path = os.pathsep.join(map(str, (VLLM / "fake", VLLM / "shim", settings.distribution)))
    (costs,) = samples([*python(VLLM / "cost.py"), "--json"], settings.near, clean_environment(PYTHONPATH=path))
    for name, us in costs.items():
        report.add(f"plugin.{name}", us * 1e3)
