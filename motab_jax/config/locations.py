"""Places that a user names: paths of this machine, and URLs of buckets. Left out: reading and writing there."""

import re
from typing import Annotated, NamedTuple
from urllib.parse import unquote

from pydantic import AfterValidator


class Bucket(NamedTuple):
    """What reads and writes the buckets of a scheme."""

    package: str
    extra: str  # of setup.py


BUCKETS = {"gs": Bucket("gcsfs", "gcs"), "s3": Bucket("s3fs", "s3")}
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def scheme_of(location: str) -> str | None:
    """The scheme of a URL, in small letters; None for a path.

    >>> scheme_of("gs://bucket/runs"), scheme_of("runs/gs"), scheme_of("File:///runs")
    ('gs', None, 'file')
    """
    match = _URL.match(location)
    return None if match is None else match[1].lower()


def check_location(location: str) -> str:
    """The place as the library takes it: a path or a bucket's URL, and of `file://` the path.

    Raises:
      ValueError: the scheme is not known, or the URL has no bucket or no path.

    >>> check_location("file:///my%20runs/a")
    '/my runs/a'
    """
    scheme = scheme_of(location)
    if scheme is None:
        return location
    rest = location.partition("://")[2]
    if scheme == "file":
        if not rest.startswith("/"):
            raise ValueError(f"write file:// with three slashes and the whole path, file:///{rest.lstrip('./')}")
        return unquote(rest)
    if scheme not in BUCKETS:
        known = ", ".join(f"{name}://" for name in (*BUCKETS, "file"))
        raise ValueError(f"nothing here reads or writes {scheme}://; give a path, or a URL with {known}")
    bucket, _, name = rest.partition("/")
    if not bucket:
        raise ValueError(f"names no bucket; write {scheme}://BUCKET/PATH")
    return f"{scheme}://{bucket}/{name.strip('/')}".rstrip("/")


Location = Annotated[str, AfterValidator(check_location)]
