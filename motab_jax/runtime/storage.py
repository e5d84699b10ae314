"""From a place that a user names to a path that can be read and written: of this machine, or of a bucket.

A bucket's path has pathlib's methods (etils.epath over fsspec). An object appears whole or not at all; folders are
names alone, and nothing renames one at once. Left out: which places there are (config/locations.py), and files of
buckets as files of this machine (staging.py).
"""

import argparse
import importlib.util
import logging
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from etils import epath

from motab_jax.config import Config, EnvironmentFailure, UserError
from motab_jax.config.locations import BUCKETS, check_location, scheme_of

AnyPath = Path | epath.Path
# Packages whose errors, and whose frames in an OSError's traceback, mean that a bucket could not be used.
_CLIENTS = frozenset({"gcsfs", "s3fs", "google", "aiohttp", "aiobotocore", "botocore"})
_REFUSALS = ("forbidden", "unauthorized", "invalid credentials", "access denied", "accessdenied", "anonymous caller")


def is_bucket(path: object) -> bool:
    """Whether a path, or its text, is a bucket's."""
    return scheme_of(str(path)) in BUCKETS


def to_path(location: str | os.PathLike[str]) -> AnyPath:
    """The path that a place names; `~` is the user's home.

    Raises:
      UserError: it is a URL with a scheme that is not known, or the package that reads it is missing.
    """
    try:
        text = check_location(os.fspath(location))
        if not is_bucket(text):
            return Path(text).expanduser()
    except (ValueError, RuntimeError) as error:  # RuntimeError: `~nobody`
        raise UserError(f"{location}: {error}") from None
    check_package(text)
    _prepare()
    return epath.Path(text)


def check_package(location: str) -> None:
    """UserError where the package that reads a bucket's URL is missing; it says what to install."""
    bucket = BUCKETS.get(scheme_of(location) or "")
    if bucket is not None and importlib.util.find_spec(bucket.package) is None:
        raise UserError(f"{location}: needs the package {bucket.package}: pip install '.[{bucket.extra}]'")


def check_packages(config: Config) -> None:
    """UserError where a package that one of the configuration's places needs is missing, before any work."""
    for place in (config.run.dir, config.student.path, config.teacher.path, config.data.path, config.eval.path):
        if place is not None:
            check_package(place)


def path_word(text: str) -> AnyPath:
    """The value of a word of a verb that is a place; the type of `Parser.word`."""
    try:
        return to_path(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _prepare() -> None:
    """Settings of the clients, before the first is made: they apply to orbax's use of epath too."""
    import fsspec.config

    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs tracebacks of what `BucketErrors` reports
    os.environ.setdefault("EPATH_USE_TF", "false")  # one client whether TensorFlow is installed or not
    for protocols in (("gs", "gcs"), ("s3", "s3a")):
        for protocol in protocols:  # what another process made is to be seen
            fsspec.config.conf.setdefault(protocol, {}).setdefault("use_listings_cache", False)


def check_bucket(path: AnyPath) -> None:
    """Check that objects can be put below a bucket's path; leaves nothing there. Raises as `BucketErrors` does.

    Making a folder would be no check: without the bucket it succeeds, or makes the bucket.
    """
    with BucketErrors(path):
        probe = path / ".writable"
        probe.write_text("")
        probe.unlink(missing_ok=True)  # another process may have been quicker


class BucketErrors:
    """Turns the errors of a bucket's client into one line, and no others. A context manager.

    It is no `except` clause, because the clients' errors have no base in common and their packages are optional.

    Raises:
      UserError: there is no such bucket or object, or access is refused.
      EnvironmentFailure: anything else, such as a server that does not answer.
    """

    def __init__(self, place: object = "a bucket"):
        self.place = place

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: Any, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None or not _of_client(error, trace):
            return
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        if isinstance(error, FileNotFoundError):
            raise UserError(f"{self.place}: no such bucket or object ({reason})") from None
        refused = isinstance(error, PermissionError) or type(error).__name__ == "DefaultCredentialsError"
        if refused or any(word in reason.lower() for word in _REFUSALS):
            raise UserError(f"{self.place}: access is refused ({reason}); check the credentials and roles") from None
        raise EnvironmentFailure(f"{self.place}: the bucket could not be used ({reason})") from None


def _of_client(error: BaseException, trace: TracebackType | None) -> bool:
    """Whether an error is a client's own, or a system error that one of its frames raised."""
    if type(error).__module__.partition(".")[0] in _CLIENTS:
        return True
    while trace is not None and isinstance(error, OSError):  # TimeoutError is one
        if trace.tb_frame.f_globals.get("__name__", "").partition(".")[0] in _CLIENTS:
            return True
        trace = trace.tb_next
    return False
