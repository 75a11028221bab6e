"""Errors that a user reads: one line that says what is wrong, the value, what is allowed and what to do."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType

EXIT_DONE = 0
EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_SOME_FAILED = 3
EXIT_INTERRUPTED = 75


class AtomSieveError(Exception):
    """A problem the user can act on; the command line prints it in one line and exits with `exit_code`."""

    exit_code = EXIT_ERROR


class UsageError(AtomSieveError):
    """The call itself is wrong: an unknown name, a value outside its range, options that exclude each other."""

    exit_code = EXIT_USAGE


class DataError(AtomSieveError):
    """A file or array is not what it claims to be."""


class Interrupted(AtomSieveError):  # noqa: N818 - a request, not an error
    """Work stopped early on request; running the same command again continues it."""

    exit_code = EXIT_INTERRUPTED


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Return `" (did you mean 'x'?)"` for the closest allowed name, or an empty string if none is close."""
    match = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""


def unknown(what: str, name: str, allowed: Iterable[str]) -> UsageError:
    """Build the error for a name outside an allowed set; it lists the set and names the nearest member."""
    names = sorted(allowed)
    shown = ", ".join(names[:20]) + (f", ... ({len(names)} in all)" if len(names) > 20 else "")
    return UsageError(f"unknown {what} {name!r}{nearest(name, names)}; allowed: {shown or '(none)'}")


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional dependency, or say in one line which extra brings it.

    Raises
    ------
    AtomSieveError
        if the module cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        message = f"{purpose} needs the package {module!r} ({error}); pip install 'atomsieve[{extra}]'"
        raise AtomSieveError(message) from error
