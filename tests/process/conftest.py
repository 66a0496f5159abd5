"""Which process tests a build runs."""
import os

# Paced runs cannot keep their pace under ThreadSanitizer on two cores, and their tests are about figures over time. The
# thread build is left with the unit tests, the ABI and the dump; WIDEEP_PACED=1 runs them too.
if "thread" in os.environ.get("WIDEEP_SAN", "") and not os.environ.get("WIDEEP_PACED"):
    collect_ignore = ["test_exporter.py", "test_prometheus.py", "test_sim.py"]
