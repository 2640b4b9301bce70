"""`bench compare`: the guard around everything, so that every way to end has its own exit code."""

from __future__ import annotations

import sys
import traceback

from ..errors import BenchError
from .codes import INTERNAL, USAGE


def main(argv: list[str]) -> int:
    """Run `bench compare` or one of its subcommands and return the exit code.

    pandas, scipy and statsmodels are imported inside, so that a missing package is exit code 5 and no regression.
    """
    try:
        return _run(argv)
    except BenchError as error:
        sys.stderr.write(f"error: {error}\n")
        return USAGE
    except BrokenPipeError:
        return USAGE
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    except Exception:
        traceback.print_exc()
        sys.stderr.write("error: this is a bug in bench compare, not a verdict (exit code 5)\n")
        return INTERNAL


def _run(argv: list[str]) -> int:
    if argv[:1] == ["noise"]:
        from .calibrate import run

        return run(argv[1:])
    if argv[:1] == ["plan"]:
        from .plan import run

        return run(argv[1:])
    if argv[:1] == ["self-check"]:
        from .selfcheck import run

        return run(argv[1:])
    from .command import run

    return run(argv)
