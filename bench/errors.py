"""One tree of errors. The class says who has to act, the message says what happened and what to do.

BenchError
├── ConfigError          the request is wrong: nothing was launched                 exit code 2
├── ResultsError         the results folder cannot be used: locked, full, foreign   exit code 2
└── CellError            one cell could not be measured: becomes its `Failure`      exit code 1
    ├── Unsupported      this combination does not exist here
    ├── OutOfMemory      the device said so
    ├── WrongLength      fewer or more tokens than asked
    ├── NonFinite        NaN or infinity in the logits
    └── LoadError        the model could not be loaded
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BenchError(Exception):
    """Base of every error that is the user's to solve. Shown as one line, never as a traceback."""


class ConfigError(BenchError):
    """The request cannot be understood or makes no sense. Raised before anything is launched."""


class ResultsError(BenchError):
    """The results folder cannot be read or written. What is already in it stays as it is."""


class CellError(BenchError):
    """One cell failed; `kind` is the `Failure.kind` it is recorded under."""

    kind = "error"


class Unsupported(CellError):
    """This combination of model, engine, precision, device and launcher does not exist here."""

    kind = "unsupported"


class OutOfMemory(CellError):
    """The device ran out of memory. The worker frees what it can and goes on with the next cell."""

    kind = "oom"


class WrongLength(CellError):
    """The model read or produced another number of tokens than the cell asks for."""

    kind = "wrong_length"


class NonFinite(CellError):
    """The logits hold NaN or infinity, so the tokens mean nothing."""

    kind = "nonfinite"


class LoadError(CellError):
    """The model could not be loaded; every cell of its job fails with it."""

    kind = "load"


def did_you_mean(what: str, word: str, known: Iterable[str]) -> str:
    """One line for an unknown `word`: the nearest known names, or all of them when none is near."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=3, cutoff=0.5) or [n for n in names if word and word in n][:3]
    if near:
        return f"unknown {what} '{word}'. Did you mean {' or '.join(near)}?"
    return f"unknown {what} '{word}'. Known: {', '.join(names)}"


def first_line(error: BaseException) -> str:
    """What a library's exception says, as part of one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(": ")
