"""Our command line without a start of Python for each command: one process has loaded it, and forks for every command.

Commands come from shell scripts, through a pipe: a client is a function for a shell. A command has an end of its own,
output on both streams and an exit status, as if it had been started.
"""

import shlex
from pathlib import Path
from typing import Final

#: Loads what most commands need; the rest is loaded by the command.
IMPORTS: Final = """
import os, signal, sys
import zonefs_emu.cli.attach, zonefs_emu.front_ends.block_device, zonefs_emu.cli.detach
from zonefs_emu.cli.main import main
"""
#: Reads directories from a pipe; runs the command line that the file *words* of each has, with its output beside it.
LOOP: Final = """
def run(directory):
    directory, _, place = directory.partition(" ")
    os.chdir(place)
    for fd, name in ((0, "in"), (1, "out"), (2, "err")):
        os.dup2(os.open(f"{directory}/{name}", os.O_RDWR | os.O_CREAT | os.O_APPEND), fd)
    sys.argv = ["zonefs-emu", *open(f"{directory}/words").read().split("\\n")[:-1]]
    code = 1
    try:
        main()
    except SystemExit as ended:
        code = ended.code or 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

signal.signal(signal.SIGCHLD, signal.SIG_IGN)
# For writing too, so that the pipe has no end when a client has closed it: what the next client writes between an end
# and the close that follows is lost, and that client waits for ever.
with open(os.open(sys.argv[1], os.O_RDWR)) as requests:
    for line in requests:
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            child = os.fork()
            if child == 0:
                run(line.strip())
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            with open(line.split()[0] + "/code", "w") as answer:
                answer.write(f"{code}\\n")
            os._exit(0)
"""


def client(directory: Path) -> str:
    """Return the function Z of a shell, which is our command line; the server reads *directory*/requests.

    The command's input is the file that $input names, and nothing without it.
    """
    place = shlex.quote(str(directory))
    return f"""
Z() {{
    d=$(mktemp -d {place}/XXXXXX)
    printf '%s\\n' "$@" >$d/words
    mkfifo $d/code
    cat "${{input:-/dev/null}}" >$d/in
    echo "$d $PWD" >{place}/requests
    read code <$d/code
    cat $d/out
    cat $d/err >&2
    return $code
}}
"""
