"""The command `bench`: what each subcommand does, in one screen."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

from .errors import BenchError, did_you_mean

USAGE = """\
usage: bench COMMAND [...]

  run [overrides] [-m]    measure a matrix: model x precision x beams x batch x lengths
  plan [overrides] [-m]   the cells, what would be skipped and why, predicted memory
  chat [overrides]        talk to a model, with TTFT and TPOT of each reply
  report FOLDER...        show results again: terminal, report.md, report.html
  doctor                  what this machine can run, or why not and what to install
  stack list|create NAME  environments for libraries whose pins exclude each other

  compare BASE CAND       is the candidate slower or less accurate? A gate for CI
  noise RESULTS...        how much a machine varies by itself: the noise floor of comparisons
  ab --a CMD --b CMD      measure two variants interleaved, for a comparison that drift cannot fake
  import FILE...          results of other tools as results.csv

`bench run --help` lists every option. Exit status: 0 ok, 1 some cells failed, 2 usage or configuration error,
130 interrupted.
"""


class Interrupted(BaseException):
    """A signal other than SIGINT asks to end; `args[0]` is its number."""


def run(arguments: list[str]) -> int:
    """Compose, plan, measure, report."""
    from . import compose, run

    composed = compose.compose(arguments, "bench run")
    return run.run(*composed) if composed else 0


def plan(arguments: list[str]) -> int:
    """Compose, plan, print."""
    from . import compose, plan, report

    composed = compose.compose(arguments, "bench plan")
    if composed:
        report.print_plan(plan.plan(composed[0]))
    return 0


def chat(arguments: list[str]) -> int:
    """Compose, plan, talk."""
    from . import chat

    return chat.main(arguments)


def report(arguments: list[str]) -> int:
    """Show results that exist."""
    from . import report

    return report.main(arguments)


def doctor(arguments: list[str]) -> int:
    """Look at the machine."""
    from . import doctor

    return doctor.main(arguments)


def stack(arguments: list[str]) -> int:
    """Environments with other pins."""
    from . import install

    return install.main(arguments)


def compare(arguments: list[str]) -> int:
    """Compare results; its exit statuses are those of `bench compare --help`."""
    from .compare import cli

    return cli.main(arguments)


def noise(arguments: list[str]) -> int:
    """Calibrate a machine."""
    return compare(["noise", *arguments])


def ab(arguments: list[str]) -> int:
    """Measure two variants interleaved."""
    from .compare import ab

    return ab.main(arguments)


def import_(arguments: list[str]) -> int:
    """Convert results of other tools."""
    from .compare import importer

    return importer.main(arguments)


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "run": run,
    "plan": plan,
    "chat": chat,
    "report": report,
    "doctor": doctor,
    "stack": stack,
    "compare": compare,
    "noise": noise,
    "ab": ab,
    "import": import_,
}


def main(arguments: list[str] | None = None) -> int:
    """Run a command; errors that are the user's to solve are one line on standard error."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    for stream in (sys.stdout, sys.stderr):  # a terminal that cannot show a character is no reason to stop
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # what nohup sets stays
            signal.signal(number, _interrupt)
    name, *rest = arguments
    try:
        if name in ("-V", "--version"):
            from . import __version__

            print(f"bench {__version__}")
            return 0
        if "-sc" in arguments or "--shell-completion" in arguments:
            from . import compose

            compose.completion(arguments, COMMANDS)
            return 0
        if name not in COMMANDS:
            print(f"bench: {did_you_mean('command', name, COMMANDS)}", file=sys.stderr)
            return 2
        return COMMANDS[name](rest)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nbench: interrupted; what was measured is kept, the same command goes on from there", file=sys.stderr)
        return 130
    except Interrupted as error:
        return 128 + int(error.args[0])
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted(number)


if __name__ == "__main__":
    sys.exit(main())
