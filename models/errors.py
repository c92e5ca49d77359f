"""The pack's one error type for mistakes that a user can correct, and the system's own errors in words."""

from __future__ import annotations

import errno
import socket
import ssl
from http.client import HTTPException
from urllib.error import HTTPError, URLError


class AnnealingError(ValueError):
    """A user's mistake, explained: what was wired or read, why it cannot work, what to do instead."""

    # ComfyUI shows an error's module, which for a node pack is a path on the user's disk.
    __module__ = "builtins"


_WORDS = {
    "the disk is full": (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)),
    "access is denied": (errno.EACCES, errno.EPERM),
    "the disk is read-only": (errno.EROFS,),
    "it is not there": (errno.ENOENT,),
    "it already exists": (errno.EEXIST,),
    "it is a folder": (errno.EISDIR,),
    "a part of the path is a file, not a folder": (errno.ENOTDIR,),
    "the name is too long": (errno.ENAMETOOLONG,),
    "the disk failed": (errno.EIO,),
    "the connection was refused": (errno.ECONNREFUSED,),
    "the connection was cut": (errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE),
    "there is no network": (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN),
}
_WORDS_OF = {number: words for words, numbers in _WORDS.items() for number in numbers}


def in_words(error: Exception) -> str:
    """Why a file or an address could not be read or written, as the end of a sentence, without error numbers or class names."""
    if isinstance(error, HTTPError):
        return f"the server answered {error.code} {error.reason}"
    if isinstance(error, URLError) and isinstance(error.reason, Exception):
        return in_words(error.reason)
    if isinstance(error, socket.gaierror):
        return "the server's name was not found (is this computer online?)"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the server's certificate is not trusted ({error.verify_message})"
    if isinstance(error, ssl.SSLError):
        return "no secure connection could be made"
    if isinstance(error, TimeoutError):
        return "it timed out"
    if isinstance(error, UnicodeError):
        return "it is not text in UTF-8"
    if words := _WORDS_OF.get(getattr(error, "errno", None) or 0):
        return words
    if isinstance(error, ConnectionError | HTTPException):
        return "the connection was cut"
    return getattr(error, "strerror", None) or str(error) or "no reason was given"
