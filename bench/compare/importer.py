"""`bench import`: results of other tools as a results.csv of ours."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ..errors import BenchError
from .arguments import Parser
from .codes import OK, USAGE
from .read import FILE, LINE, known, read_side


def main(argv: list[str]) -> int:
    """Convert and return the exit code."""
    p = Parser(prog="bench import", description="Convert logs and results of other tools into a results.csv.")
    p.add_argument("files", nargs="+", metavar="FILE", help="files, globs or folders")
    p.add_argument("--out", default="results.csv", metavar="CSV", help="table to write (results.csv)")
    try:
        args = p.parse_args(argv)
        frame = read_side(args.files).frame.drop(columns=[FILE, LINE])
        out = Path(args.out)
        out.parent.mkdir(parents=True, exist_ok=True)
        if "samples" in frame:
            frame["samples"] = [os.path.relpath(path, out.parent) if path else "" for path in frame["samples"]]
        frame[known(frame)].to_csv(out, index=False)
    except BenchError as error:
        sys.stderr.write(f"error: {error}\n")
        return USAGE
    except OSError as error:
        sys.stderr.write(f"error: cannot write {error.filename}: {error.strerror}\n")
        return USAGE
    sys.stdout.write(f"{out}: {len(frame)} rows of {len(args.files)} argument{'s' if len(args.files) != 1 else ''}\n")
    return OK
