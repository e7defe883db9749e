"""The boundary of FUSE requests and of a mount's background tasks: a bug fails only the request that met it.

Every handler that a subclass of :class:`ContainedOperations` defines is wrapped when the class is made, so that no
handler can be forgotten. pyfuse3 takes :class:`FUSEError` for an answer; any other exception ends its loop, and with it
the mount.
"""

import functools
import inspect
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final

import pyfuse3
from pyfuse3 import FUSEError

from zonefs_emu.device.unforeseen import UnforeseenErrors
from zonefs_emu.fs.errnos import ERRNO_OF

#: The port's name, which begins every sentence of ``why``.
PORT_NAME: Final = "zonefs"
#: The names of the methods of Operations that pyfuse3 calls as coroutines, one for each kind of request.
HANDLERS: Final = frozenset(
    name for name, member in vars(pyfuse3.Operations).items() if inspect.iscoroutinefunction(member)
)
#: Requests that have no answer. Any exception of their handlers, also FUSEError, would end pyfuse3's loop.
_UNANSWERED: Final = frozenset({"forget"})
#: Requests whose arguments have names: packing and unpacking them takes 0.2 of the 16 µs of a request.
_TRANSFERS: Final = frozenset({"read", "write"})


class ContainedOperations(pyfuse3.Operations):
    """Handlers whose unforeseen exceptions are contained and answered with EIO."""

    #: The object that contains and reports the exceptions; set by the subclass.
    unforeseen: UnforeseenErrors

    def __init_subclass__(cls) -> None:
        """Wrap the handlers that *cls* defines."""
        super().__init_subclass__()
        for name in HANDLERS & vars(cls).keys():
            setattr(cls, name, _contained_handler(name, vars(cls)[name]))

    def take_stock(self, handler: str, *arguments: object) -> None:
        """Complete or undo what *handler* left half done when an exception ended it; by default, do nothing.

        *arguments* are those that the handler had.
        """


def _contained_handler(name: str, handler: Callable[..., Awaitable[object]]) -> Callable[..., Awaitable[object]]:
    where = f"{name} request"
    answered = name not in _UNANSWERED

    def contain(self: ContainedOperations, error: Exception, *args: object) -> None:
        status = self.unforeseen.contain(PORT_NAME, where, error)
        with contained(self.unforeseen, f"taking stock after a {where}"):
            self.take_stock(name, *args)
        if answered:
            raise FUSEError(ERRNO_OF[status]) from None

    @functools.wraps(handler)
    async def contained_handler(self: ContainedOperations, *args: object) -> object:
        try:
            return await handler(self, *args)
        except FUSEError:
            raise
        except Exception as error:  # the boundary of a FUSE request
            contain(self, error, *args)
            return None

    @functools.wraps(handler)
    async def contained_transfer(self: ContainedOperations, handle: int, offset: int, data: object) -> object:
        try:
            return await handler(self, handle, offset, data)
        except FUSEError:
            raise
        except Exception as error:  # the boundary of a read or write
            contain(self, error, handle, offset, data)
            return None

    return contained_transfer if name in _TRANSFERS else contained_handler


@contextmanager
def contained(unforeseen: UnforeseenErrors, what: str) -> Iterator[None]:
    """Contain exceptions of the context, which does *what* and has no request to answer."""
    try:
        yield
    except Exception as error:  # the boundary of a task of a mount
        unforeseen.contain(PORT_NAME, what, error)
