"""Which errors are nobody's mistake: the network, a server, a full disk or a stale share. They are worth a retry."""

import errno
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
_ERRNOS = {
    getattr(errno, name)
    for name in (
        "EAGAIN", "EBUSY", "ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "EDQUOT", "EHOSTDOWN", "EHOSTUNREACH", "EIO",
        "EMFILE", "ENETDOWN", "ENETRESET", "ENETUNREACH", "ENFILE", "ENOLINK", "ENOMEM", "ENOSPC", "ENOTCONN", "EPIPE",
        "EREMOTEIO", "ESTALE", "ETIMEDOUT",
    )
    if hasattr(errno, name)
}  # fmt: skip
_BUSY = (408, 425, 429)  # HTTP statuses below 500 that ask for another try
ATTEMPTS = 4
FIRST_WAIT = 1.0  # seconds before the second attempt; each further wait is twice as long


def is_environment(error: BaseException) -> bool:
    """Whether an error, or one that it was raised for, is no mistake of the user's.

    By the number of a system error, or the status of an HTTP response; time limits and lost connections are, too.

    >>> is_environment(OSError(errno.ESTALE, "stale")), is_environment(FileNotFoundError(errno.ENOENT, "none"))
    (True, False)
    """
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        if type(current).__name__ == "OfflineModeIsEnabled":
            return False  # the user's own setting
        status = getattr(getattr(current, "response", None), "status_code", None)
        if isinstance(status, int):
            return status >= 500 or status in _BUSY
        if isinstance(current, OSError) and current.errno in _ERRNOS:
            return True
        if isinstance(current, TimeoutError | ConnectionError) or _is_transport(current):
            return True
        current = current.__cause__ or current.__context__
    return False


def _is_transport(error: BaseException) -> bool:
    """Whether an HTTP library says that there was no answer. Its name differs between versions of huggingface_hub."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"TransportError", "ConnectError", "TimeoutException"})


def retried(call: Callable[[], T], errors: tuple[type[Exception], ...] = (OSError,)) -> T:
    """The call's result, after up to ATTEMPTS attempts.

    Args:
      call: what to do; a call that failed left nothing behind that matters.
      errors: what it may raise; those that `is_environment` knows are worth another attempt.

    Raises:
      What the last attempt raised.
    """
    for attempt in range(ATTEMPTS - 1):
        try:
            return call()
        except errors as error:
            if not is_environment(error):
                raise
        time.sleep(FIRST_WAIT * 2**attempt)
    return call()
