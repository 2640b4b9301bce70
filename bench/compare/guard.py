"""Every way to end has its own exit code."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable

from ..errors import BenchError
from .codes import INTERNAL, USAGE


def guarded(run: Callable[[list[str]], int], argv: list[str]) -> int:
    """The exit code of `run(argv)`.

    `run` imports pandas, scipy and statsmodels itself, so that a missing package is exit code 5 and no regression.
    """
    try:
        return run(argv)
    except BenchError as error:
        sys.stderr.write(f"bench: {error}\n")
        return USAGE
    except BrokenPipeError:
        raise  # for main, like any command's
    except KeyboardInterrupt:
        sys.stderr.write("bench: interrupted\n")
        return 130
    except SystemExit as end:  # --help
        return int(end.code or 0)
    except Exception:
        traceback.print_exc()
        sys.stderr.write("bench: this is a bug or a broken installation, not a verdict (exit code 5)\n")
        return INTERNAL
