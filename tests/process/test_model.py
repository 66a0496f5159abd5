"""The models of the slot protocol and of takeover hold what tests/model/*.pml promises, and each mutant breaks it."""

import sys

import pytest

from abi_helpers import ROOT

sys.path.insert(0, str(ROOT / "tests" / "model"))
import check  # noqa: E402

# Nothing of them depends on how the programs were built.
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("configuration", [check.SLOT, check.SLOT_BATCH, check.TAKEOVER, check.TAKEOVER_THREE],
                         ids=lambda c: c[0] + "-" + "-".join(map(str, c[1].values())))
def test_holds(configuration):
    result = check.check(configuration)
    assert result.errors == 0, result.violated
    assert result.states > 10000


def test_nobody_retries_for_ever():
    assert check.check(check.TAKEOVER, cycles=True).errors == 0


MUTANTS = [(configuration, mutant) for configuration in (check.SLOT, check.TAKEOVER)
           for mutant in check.mutants(configuration[0])]
LIVELOCKS = {"MUTANT_SWEEPS_AGAIN"}


@pytest.mark.parametrize("configuration, mutant", MUTANTS, ids=lambda value: value if isinstance(value, str) else value[0])
def test_mutant_is_caught(configuration, mutant):
    result = check.check(configuration, mutant, cycles=mutant in LIVELOCKS)
    assert result.errors > 0 and result.violated
