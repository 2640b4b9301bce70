"""The command line of `bench compare`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import ConfigError, did_you_mean
from .amounts import amount, fraction
from .settings import FAILURES, Settings

FORMATS = ("table", "md", "json", "csv", "junit", "html", "github")

_EPILOG = """\
bench compare noise RESULTS…        how far launches of one build scatter here: writes a noise floor
bench compare plan --noise-floor F  launches per cell that a change of a given size needs
bench compare self-check RESULTS…   false alarms when one build is compared with itself

exit codes: 0 passed · 1 regression, accuracy, newly failed or missing cell · 2 usage or unreadable input
            3 inconclusive under --strict, or to be confirmed · 4 nothing comparable · 5 internal error
"""


class Parser(argparse.ArgumentParser):
    """Raises ConfigError instead of leaving the process."""

    def error(self, message: str) -> None:  # type: ignore[override]
        """One line and exit code 2, as for every wrong request."""
        raise ConfigError(f"{message} (see {self.prog} --help)")


def parser() -> Parser:
    """Every flag of `bench compare`."""
    p = Parser(
        prog="bench compare",
        description="Say whether a candidate is slower or less accurate than a base, with an exit code for CI.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    p.add_argument(
        "sides", nargs="*", metavar="BASE CAND", help="files, globs or results folders; more candidates may follow"
    )
    p.add_argument("--baseline", nargs="+", default=[], metavar="P", help="launches of the base, instead of BASE")
    p.add_argument("--candidate", nargs="+", default=[], metavar="P", help="launches of the candidate, instead of CAND")
    roles = p.add_argument_group("columns")
    for name, words in (
        ("by", "key columns, instead of the known ones"),
        ("key", "more key columns"),
        ("ignore", "columns that do not matter"),
        ("metrics", "metrics that gate, instead of the primary ones; 'all' shows every metric"),
    ):
        roles.add_argument(f"--{name}", type=_names, default=(), metavar="COL,…", help=words)
    roles.add_argument("--where", action="append", default=[], metavar="COND", help="only these cells: 'batch<=8'")
    decision = p.add_argument_group("decision")
    decision.add_argument(
        "--delta", action="append", default=[], metavar="[M=]3%", help="margin, of one metric or of all"
    )
    decision.add_argument(
        "--abs-floor", action="append", default=[], metavar="[M=]0.2ms", help="smallest change that counts"
    )
    decision.add_argument("--alpha", type=float, default=0.05, help="level of each one-sided bound (0.05)")
    decision.add_argument(
        "--correction", choices=("none", "bh", "holm"), default="none", help="for the number of tests"
    )
    decision.add_argument("--strict", action="store_true", help="inconclusive cells exit with 3")
    decision.add_argument(
        "--fail-on", type=_names, default=Settings.fail_on, metavar="WHAT,…", help=f"of {', '.join(FAILURES)}"
    )
    decision.add_argument("--noise-floor", metavar="FILE", help="from bench compare noise")
    decision.add_argument(
        "--noise-max-age", type=int, default=30, metavar="DAYS", help="then it is used with a warning (30)"
    )
    decision.add_argument("--allow-single", action="store_true", help="gate one launch per side by the plain margin")
    decision.add_argument(
        "--env-policy", choices=("ignore", "warn", "error"), default="error", help="for hard differences"
    )
    decision.add_argument("--expect-diff", type=_names, default=(), metavar="COL,…", help="the environment under test")
    decision.add_argument(
        "--missing", choices=("fail", "warn", "ignore"), default="fail", help="cells without a candidate"
    )
    decision.add_argument(
        "--expected", metavar="YAML", help="matrix that the candidate must have, instead of the base's"
    )
    decision.add_argument("--thresholds", "--waivers", metavar="YAML", help="margins of single cells, and waivers")
    decision.add_argument(
        "--confirm-list", metavar="FILE", help="write the cells to measure again; regressions exit with 3"
    )
    decision.add_argument("--update-baseline", metavar="FILE", help="write the candidate there when the gate passes")
    decision.add_argument("--warn-only", action="store_true", help="exit with 0 instead of 1, 3 or 4")
    decision.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    accuracy = p.add_argument_group("accuracy")
    accuracy.add_argument("--acc-margin", default="1%", metavar=".5pp|1%", help="tolerated loss (1%% of the base)")
    accuracy.add_argument("--acc-min-n", type=int, default=1000, metavar="N", help="fewer documents do not gate (1000)")
    accuracy.add_argument("--expect-identical", action="store_true", help="any flip or other output token fails")
    output = p.add_argument_group("output")
    output.add_argument(
        "--format", choices=FORMATS, default="table", help="on standard output, or in a plain --out FILE"
    )
    output.add_argument("--out", action="append", default=[], metavar="[FORMAT=]FILE", help="repeatable: md=… junit=…")
    output.add_argument("--max-rows", type=int, metavar="N", help="of the table (40, or all with --all)")
    output.add_argument("--all", action="store_true", help="show equivalent cells too")
    output.add_argument("--sort", choices=("severity", "name"), default="severity")
    output.add_argument("--no-color", action="store_true")
    return p


def settings(args: argparse.Namespace) -> Settings:
    """The settings of parsed arguments. Raises ConfigError."""
    from .columns import column_named

    if not 0 < args.alpha < 0.5:
        raise ConfigError(f"--alpha {args.alpha} is out of range: expected a level between 0 and 0.5")
    for word in args.fail_on:
        if word not in FAILURES:
            raise ConfigError(did_you_mean("--fail-on", word, FAILURES))
    delta = {column_named(m) if m else "": fraction(v) for m, v in _pairs(args.delta)}
    floors = {column_named(m) if m else "": amount(v) for m, v in _pairs(args.abs_floor)}
    everything = args.metrics == ("all",)
    return Settings(
        by=args.by,
        key=args.key,
        ignore=args.ignore,
        metrics=() if everything else args.metrics,
        all_metrics=everything,
        where=tuple(args.where),
        delta=delta,
        abs_floor=floors,
        alpha=args.alpha,
        correction=args.correction,
        strict=args.strict,
        fail_on=args.fail_on,
        missing=args.missing,
        env_policy=args.env_policy,
        expect_diff=args.expect_diff,
        allow_single=args.allow_single,
        noise_floor=args.noise_floor,
        noise_max_age=args.noise_max_age,
        thresholds=args.thresholds,
        expected=args.expected,
        acc_margin=args.acc_margin,
        acc_min_n=args.acc_min_n,
        expect_identical=args.expect_identical,
        provisional=args.confirm_list is not None,
        warn_only=args.warn_only,
        seed=args.seed,
    )


def outputs(args: argparse.Namespace) -> list[tuple[str, Path | None]]:
    """Formats and where they go; None is standard output. Raises ConfigError for an unknown format."""
    found: list[tuple[str, Path | None]] = []
    for text in args.out:
        kind, equals, path = text.partition("=")
        if equals and kind not in FORMATS:
            raise ConfigError(did_you_mean("format", kind, FORMATS))
        found.append((kind, Path(path)) if equals else (args.format, Path(text)))
    plain = any(path is not None and "=" not in text for text, (_, path) in zip(args.out, found, strict=True))
    return found if plain else [(args.format, None), *found]


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _pairs(texts: list[str]) -> list[tuple[str, str]]:
    """ "3%" and "ttft=5%,itl_p99=10%" as (metric or nothing, amount)."""
    parts = [part for text in texts for part in text.split(",")]
    return [
        (name.strip(), value) if equals else ("", name) for name, equals, value in (p.partition("=") for p in parts)
    ]
