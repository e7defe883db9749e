"""Commands of one process that forks for each, as a shell sees them."""

import os
import subprocess
import sys
import time
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


#: Programs that wait before they close a file of theirs have the gap between the end of a pipe and its close long.
SLOW_CLOSE: Final = """
import io, time
class open(io.TextIOWrapper):
    def __init__(self, file, mode="r"):
        super().__init__(io.open(file, mode + "b"))
    def __exit__(self, *exception):
        time.sleep(0.5)
        super().__exit__(*exception)
"""


def test_a_command_that_comes_right_after_another_is_not_lost(tmp_path: Path) -> None:
    pipe = tmp_path / "requests"
    os.mkfifo(pipe)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "words").write_text("--version\n")
        os.mkfifo(tmp_path / name / "code")

    def code(name: str) -> str:
        answer = subprocess.run(["cat", tmp_path / name / "code"], check=True, capture_output=True, timeout=60)
        return answer.stdout.decode()

    with subprocess.Popen([sys.executable, "-c", IMPORTS + SLOW_CLOSE + LOOP, pipe]) as server:
        try:
            with pipe.open("w") as requests:
                print(tmp_path / "first", tmp_path, file=requests, flush=True)
                assert code("first") == "0\n"
            # The command, which had the pipe open too, is gone; the server has seen the end, and has not closed.
            time.sleep(0.2)
            pipe.write_text(f"{tmp_path}/second {tmp_path}\n")
            assert code("second") == "0\n"
        finally:
            server.kill()
