"""The entry of the command line: the group of all verbs, which turns errors into one sentence and an exit code."""

import codecs
import errno
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import IO, Final, TextIO

import click

from zonefs_emu.cli.verb_table import VERBS, Verb
from zonefs_emu.cli.versions import versions
from zonefs_emu.errors import UsageError, ZonedError, host_sentence, printable

#: The name of the handler of characters that a stream cannot encode.
_OUTPUT_ERRORS: Final = "zonefs_emu.output"
#: What the host refuses with an error that names neither a file nor an operation, by its number: the working directory
#: is gone, or stdout has no room for a help text, which click prints. Verbs name whatever else they ask for.
_NAMELESS: Final = {errno.ENOENT: "find the working directory", errno.ENOSPC: "write to stdout"}


class OneSentence(click.ClickException):
    """The error of a command, as one line on stderr."""

    exit_code = 1

    def show(self, file: "IO[str] | None" = None) -> None:
        """Print the sentence."""
        click.echo(f"zonefs-emu: {printable(self.format_message())}", file=file, err=file is None)


class WrongUsage(OneSentence):
    """The command line itself was wrong."""

    exit_code = 2


class Verbs(click.Group):
    """A group whose commands fail with one sentence and exit code 1 for a refusal, 2 for a wrong command line."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: object
    ) -> click.Context:
        """Parse the group's own options."""
        with _in_one_sentence():
            return super().make_context(info_name, args, parent, **extra)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the verb's name, the verb itself, and the arguments that are left for it."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command.load() if isinstance(command, Verb) else command, rest

    def invoke(self, ctx: click.Context) -> object:
        """Parse and run the verb."""
        with _in_one_sentence():
            return super().invoke(ctx)


@contextmanager
def _in_one_sentence() -> Iterator[None]:
    try:
        yield
    except click.exceptions.NoArgsIsHelpError:
        raise
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "zonefs-emu"
        message = f"{error.format_message().rstrip('.')} (see '{path} --help')"
        raise WrongUsage(message) from None
    except UsageError as error:
        raise (OneSentence if error.exit_code == 1 else WrongUsage)(str(error)) from None
    except ZonedError as error:
        raise OneSentence(str(error)) from None
    except OSError as error:
        if error.errno == errno.EPIPE:
            # The reader of the output (head, for example) has closed the pipe; click ends without a message.
            raise
        if error.filename is None and not hasattr(error, "__notes__") and error.errno in _NAMELESS:
            error.add_note(_NAMELESS[error.errno])
        raise OneSentence(host_sentence(error)) from None


def _say_versions(context: click.Context, _option: click.Parameter, wanted: bool) -> None:  # noqa: FBT001  (click's)
    if wanted and not context.resilient_parsing:
        own, *others = (f"{name} {version}" for name, version in versions().items())
        click.echo(f"{own} ({', '.join(others)})")
        context.exit()


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_say_versions,
    help="Show the versions of the program and of what it runs on, and exit.",
)  # fmt: skip
def cli() -> None:
    """Zoned storage without the hardware: one file that behaves like a host-managed zoned drive.

    \b
    A first round:
      zonefs-emu create small.img --preset small
      zonefs-emu mkfs small.img
      mkdir mnt && zonefs-emu mount small.img mnt
      dd if=/dev/urandom of=mnt/seq/0 bs=1M count=4 oflag=direct conv=notrunc
      zonefs-emu map small.img
      zonefs-emu umount mnt

    Every verb works on an image that no process uses and on one that is mounted or served.
    """


for _verb in VERBS:
    cli.add_command(_verb)


def main() -> None:
    """Run the command line and exit."""
    _occupy_standard_streams()
    codecs.register_error(_OUTPUT_ERRORS, _encode_anyway)
    logging.basicConfig(level=logging.WARNING, format="zonefs-emu: warning: %(message)s")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIO) or hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=_OUTPUT_ERRORS)  # type: ignore[union-attr]
    # A signal ends a verb by an exception, so that the verb removes incomplete files. Daemons have their own way.
    signal.signal(signal.SIGTERM, _end)
    try:
        cli(prog_name="zonefs-emu")
    finally:
        # Nothing is left to be removed, and an exception in the interpreter's own end would be printed.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _encode_anyway(error: UnicodeError) -> tuple[bytes, int]:
    """Return the replacement for a character that a stream cannot encode, so that output never ends in a traceback.

    A byte of a name that is no text (a surrogate, PEP 383) is written as that byte, so that the output names the file.
    Other characters, such as the signs of the picture, become question marks.
    """
    assert isinstance(error, UnicodeEncodeError)
    code = ord(error.object[error.start])
    return bytes([code & 0xFF]) if 0xDC80 <= code <= 0xDCFF else b"?", error.start + 1


def _occupy_standard_streams() -> None:
    """Put the null device in place of each standard stream that the parent process has closed.

    Otherwise the next file that is opened, an image for example, would get its number, and then output of this program
    and of libfuse.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            mode = "w" if number else "r"
            # The file gets the lowest free number, which is that of the stream.
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115  (open until the end)


def _end(number: int, _frame: FrameType | None) -> None:
    """Exit with the code that a shell has for a process that the signal killed; ignore further signals."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


def vhost_user_blk() -> None:
    """Be the program that managers know as a vhost-user-blk back-end: ``serve`` with their options."""
    sys.argv[1:1] = ["serve", "--device", "blk"]
    main()


def vhost_user_scsi() -> None:
    """Be the program that managers know as a vhost-user-scsi back-end: ``serve`` with their options."""
    sys.argv[1:1] = ["serve", "--device", "scsi"]
    main()


def mount_helper() -> None:
    """Be the program that mount(8) runs for the type fuse.zonefs-emu: ``mount`` with the arguments of a helper."""
    # Imported here because no other program of this package needs it.
    from zonefs_emu.cli.mount_helper import exit_code, verb_arguments  # noqa: PLC0415

    try:
        arguments = verb_arguments(sys.argv[1:])
    except UsageError as error:
        sys.stderr.write(f"{printable(error)}\n")
        sys.exit(exit_code(error.exit_code))
    if arguments is None:
        return
    sys.argv[1:] = arguments
    try:
        main()
    except SystemExit as ended:
        sys.exit(exit_code(ended.code))
