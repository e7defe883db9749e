"""Commands of one process that forks for each, as a shell sees them."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from tools.forking import IMPORTS, LOOP, client

#: Each line shows one thing that a command has: input, output on both streams, a directory, an exit status.
SCRIPT: Final = """
Z create small.img --size 8M --zone-size 1M >created
head -c 4096 /dev/urandom >data
input=data Z write small.img --zone 1
Z read small.img --zone 1 --length 4K | cmp - data
Z report small.img --zone 1 >/dev/null 2>refusal
echo $?
Z reset small.img --zone 1; Z read small.img --zone 1 --length 4K 2>/dev/null | cmp -s - data
echo $?
"""


def test_a_command_has_input_output_a_place_and_a_status(tmp_path: Path) -> None:
    place, work = tmp_path / "commands", tmp_path / "work"
    place.mkdir()
    work.mkdir()
    os.mkfifo(place / "requests")
    with subprocess.Popen([sys.executable, "-c", IMPORTS + LOOP, place / "requests"]) as server:
        try:
            script = client(place) + SCRIPT
            done = subprocess.run(["bash", "-c", script], cwd=work, check=True, capture_output=True, text=True)
        finally:
            server.kill()
    assert done.stdout.splitlines() == ["2", "1"]
    assert done.stderr == ""
    assert "No such option" in (work / "refusal").read_text()
    assert (work / "small.img").exists()
