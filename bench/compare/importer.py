"""`bench import`: results of other tools as a results.csv of ours."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ..errors import ResultsError
from .arguments import Parser
from .codes import OK
from .guard import guarded


def main(argv: list[str]) -> int:
    """Convert and return the exit code."""
    return guarded(_run, argv)


def _run(argv: list[str]) -> int:
    from .read import FILE, LINE, known, read_side

    p = Parser(prog="bench import", description="Convert logs and results of other tools into a results.csv.")
    p.add_argument("files", nargs="+", metavar="FILE", help="files, globs or folders")
    p.add_argument("--out", default="results.csv", metavar="CSV", help="table to write (results.csv)")
    args = p.parse_args(argv)
    side = read_side(args.files)
    frame, out = side.frame.drop(columns=[FILE, LINE]), Path(args.out)
    if "samples" in frame:
        frame["samples"] = [os.path.relpath(path, out.parent) if path else "" for path in frame["samples"]]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        frame[known(frame)].to_csv(out, index=False)
    except OSError as error:
        raise ResultsError(f"cannot write {out}: {error.strerror}") from error
    sys.stdout.write(f"{out}: {len(frame)} rows from {len(side.files)} files\n")
    return OK
