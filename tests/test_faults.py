"The fault campaign of tests/faults.py: twenty kills each time, two hundred with --slow"

import subprocess
from pathlib import Path

import pytest


@pytest.mark.parametrize("kills", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_what_a_fault_leaves_goes_on_to_the_undisturbed_result(kills, quick_python):
    campaign = str(Path(__file__).with_name("faults.py"))
    code = "import runpy, sys; sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"
    done = subprocess.run(
        [*quick_python, "-c", code, campaign, "--kills", str(kills)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
