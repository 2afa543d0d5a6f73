"""The process: what it frees stays with it."""

import subprocess
import sys
from pathlib import Path

import pytest

TOUCH = """
import resource, sys
import numpy as np
from training import runtime
runtime.setup(keep_memory=sys.argv[1] == "keep", cache="")
faults = []
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.empty(2**25).fill(1.0)  # 256 MB
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(max(faults[1:]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_memory_that_is_kept_is_not_touched_for_the_first_time_again():
    root = Path(__file__).parents[2]

    def faults(how):
        return int(
            subprocess.run([sys.executable, "-c", TOUCH, how], cwd=root, capture_output=True, check=True, text=True).stdout
        )

    assert faults("keep") * 10 < faults("return")
