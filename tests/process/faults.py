# SPDX-License-Identifier: Apache-2.0
"""What the campaign's tests tried, for the table that `make check-all` ends with (tests/campaign.py)."""

import json
import os


def record_faults(fault, tried, lost=0, let_in=0):
    """Call it once the assertions about them held.

    tried: how many were injected and survived; lost: of these, how many cost a total or a reply that was not theirs to
    cost; let_in: how many broken things were accepted. Nothing is written unless $WIDEEP_FAULTS names a file.
    """
    path = os.environ.get("WIDEEP_FAULTS")
    if path:
        line = json.dumps({"fault": fault, "tried": tried, "survived": tried, "lost": lost, "let_in": let_in}) + "\n"
        with open(path, "a", encoding="ascii") as file:  # O_APPEND: lines of several processes do not mix
            file.write(line)
