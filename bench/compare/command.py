"""One run of `bench compare`: read, compare, render, write."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import importlib
import os
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..errors import ConfigError, ResultsError
from .arguments import outputs, parser, settings
from .codes import FAILED, NOTHING, OK, UNDECIDED
from .compare import compare
from .gate import worst
from .model import Report, plain, to_json
from .noise import read_floor
from .read import FILE, LINE, Side, known, read_side
from .render_terminal import show
from .rerun import confirm_list


def run(argv: list[str]) -> int:
    """Compare and return the exit code. Raises BenchError for a wrong request or unreadable input."""
    args = parser().parse_args(argv)
    wanted = settings(args)
    targets = outputs(args)
    base, candidates = _sides(args)
    comparisons = [compare(base, candidate, wanted) for candidate in candidates]
    code = worst([comparison.exit_code for comparison in comparisons])
    floor = read_floor(args.noise_floor) if args.noise_floor else None
    report = Report(
        comparisons=comparisons,
        settings=plain(dataclasses.asdict(wanted)),
        tool=f"bench {_version()}",
        exit_code=code,
        warn_only=args.warn_only,
        self_check=floor.self_check if floor else None,
    )
    for kind, path in targets:
        _output(report, kind, path, args)
    if args.confirm_list:
        write(Path(args.confirm_list), confirm_list(comparisons))
    if args.update_baseline:
        _update(args.update_baseline, candidates, code)
    return OK if args.warn_only and code in (FAILED, UNDECIDED, NOTHING) else code


def _sides(args: argparse.Namespace) -> tuple[Side, list[Side]]:
    base, candidates = args.baseline, [args.candidate] if args.candidate else []
    positional = list(args.sides)
    if not base and positional:
        base = [positional.pop(0)]
    candidates += [[path] for path in positional]
    if not base or not candidates:
        raise ConfigError("give a base and a candidate: bench compare BASE CAND, or --baseline P… --candidate P…")
    return read_side(base), [read_side(paths) for paths in candidates]


def _output(report: Report, kind: str, path: Path | None, args: argparse.Namespace) -> None:
    if kind == "table":
        from . import render_terminal

        most = args.max_rows or (None if args.all else render_terminal.ROWS)
        text = render_terminal.render(report, most, args.all, args.sort)
        if path is None:
            show(text, color=not args.no_color)
            return
    elif kind == "json":
        text = to_json(report)
    elif kind == "md":
        from . import render_markdown

        summary = os.environ.get("GITHUB_STEP_SUMMARY")
        whole = path is not None and summary is not None and path.resolve() == Path(summary).resolve()
        limit = render_markdown.SUMMARY_BYTES if whole else render_markdown.COMMENT_BYTES
        text = render_markdown.render(report, limit, args.sort)
    else:
        text = importlib.import_module(f".render_{kind}", __package__).render(report)
    if path is None:
        sys.stdout.write(text)
    else:
        write(path, text)


def write(path: Path, text: str) -> None:
    """Write a file as a whole. Raises ResultsError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ResultsError(f"cannot write {path}: {error.strerror}") from error


def _update(path: str, candidates: list[Side], code: int) -> None:
    if len(candidates) != 1:
        raise ConfigError("--update-baseline takes one candidate")
    if code != OK:
        sys.stderr.write(f"{path} is left as it was: the gate did not pass\n")
        return
    frame = candidates[0].frame.drop(columns=[FILE, LINE])
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    frame[known(frame)].to_csv(target, index=False, quoting=csv.QUOTE_MINIMAL)
    sys.stderr.write(f"{path} now holds the candidate: {len(frame)} rows\n")


def _version() -> str:
    try:
        return version("bench")
    except PackageNotFoundError:
        return "from source"
