import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROUNDS = 1000


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_nothing_acknowledged_is_lost_in_a_thousand_kills(tmp_path: Path) -> None:
    script = Path(__file__).with_name("kill_rounds.py")
    arguments = [str(tmp_path / "image"), str(ROUNDS), "20261121"]
    # The package that this test is of, whatever else is installed.
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, str(script), *arguments], env=environment, check=False, capture_output=True, text=True
    )
    assert not done.returncode, done.stderr
    counts = json.loads(done.stdout)
    assert counts["rounds"] == ROUNDS
    # Otherwise the processes were killed before they did anything.
    assert counts["answered"] > 2 * ROUNDS
