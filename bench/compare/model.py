"""The one result model. Every output is a rendering of it, so that no two outputs can disagree."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any

VERSION = 1
"""Version of the JSON. Raised when a field changes its meaning."""

STATUS = "status"
"""The metric of a result that is about a cell as a whole: failed, missing, new."""


@dataclass
class Result:
    """One cell and metric. Base and candidate values are geometric means over launches, in base units."""

    label: str
    """The cell in words: model, precision and the keys that vary in this comparison."""
    key: dict[str, str]
    metric: str
    verdict: str
    """regressed, improved, equivalent, inconclusive, suspect, not-comparable; accuracy-regressed,
    accuracy-improved, non-inferior; failed-new, missing, new, fixed, both-failed, skipped."""
    tier: str = ""
    """T0: one launch per side. T1: launches. T1p: launches in blocks. T3: documents."""
    gates: bool = False
    """Whether this result may fail the gate at all."""
    fails: str = ""
    """The --fail-on word under which it does, or nothing."""
    lean: str = ""
    """`worse` or `better` when an inconclusive or suspect result points somewhere."""
    reason: str = ""
    """Why it is not comparable, missing or inconclusive, or the failure's message."""
    waived: str = ""
    kind: str = ""
    better: str = ""
    base: float | None = None
    cand: float | None = None
    base_ok: int = 0
    base_n: int = 0
    cand_ok: int = 0
    cand_n: int = 0
    """Launches that succeeded, and all launches."""
    d: float | None = None
    """Mean difference of logarithms, candidate minus base; for accuracy the difference itself."""
    se: float | None = None
    df: float | None = None
    """Degrees of freedom; None for infinitely many."""
    ratio: float | None = None
    lower: float | None = None
    upper: float | None = None
    """Bounds of `ratio`, or of `d` for accuracy."""
    interval: str = ""
    """What the bounds are."""
    method: str = ""
    margin: float | None = None
    """As a fraction; for accuracy as a difference."""
    margin_source: str = ""
    p_worse: float | None = None
    """One-sided p of "worse by no more than the margin"."""
    p_better: float | None = None
    q_worse: float | None = None
    q_better: float | None = None
    """The same adjusted for the number of tests."""
    mde: float | None = None
    """Minimum detectable effect, as a fraction."""
    needs_k: float | None = None
    """Launches per side for a verdict with 80 % power if the change seen is the true one; inf above 100."""
    hl_ratio: float | None = None
    """Hodges-Lehmann ratio, from 5 launches per side."""
    mwu_p: float | None = None
    """Two-sided Mann-Whitney p of the launches, from 4 per side. Never decides."""
    spread_ratio: float | None = None
    """Candidate's launch SD over base's."""
    shift_removed: float | None = None
    """`ratio` without the shift that all cells share. Information only."""
    sequential: bool = False
    """All launches of one side ran before all of the other: drift is not separable from change."""
    notes: list[str] = field(default_factory=list)
    base_status: str = ""
    cand_status: str = ""
    log: str = ""
    base_launches: list[float] = field(default_factory=list)
    cand_launches: list[float] = field(default_factory=list)
    """Launch values in the order of time."""
    base_blocks: list[int] = field(default_factory=list)
    cand_blocks: list[int] = field(default_factory=list)
    """Block of each launch, for tier T1p: d is the mean over common blocks of the difference of mean logarithms."""
    accuracy: dict[str, Any] | None = None
    """Counts, McNemar, flips: `accuracy.py`."""
    samples: dict[str, Any] | None = None
    """Diagnostics of iterations: `diagnostics.py`. Never replicates."""


@dataclass
class Difference:
    """A column of the environment that differs between the sides."""

    column: str
    base: list[str]
    cand: list[str]
    hard: bool
    declared: bool
    cells: int
    """Matched cells in which it differs."""


@dataclass
class Suite:
    """Geometric mean of the ratios of one metric over matched, successful cells."""

    metric: str
    ratio: float
    lower: float | None
    upper: float | None
    """95 % t interval over cells."""
    cells: int
    of: int
    shift: float | None = None
    """Median ratio, when nearly all cells moved together."""


@dataclass
class Comparison:
    """One candidate against the base."""

    base: str
    cand: str
    results: list[Result]
    cells: int
    metrics: list[str]
    environment: list[Difference]
    suites: list[Suite]
    marginals: list[str]
    """Sentences: the axis values that most flagged cells share."""
    launches: str
    """ "K=5", or the range."""
    session: str
    """interleaved, sequential, mixed or unknown."""
    identical_outputs: tuple[int, int] | None
    """Cells with the same output hash on both sides, of those with a hash."""
    counts: dict[str, int] = field(default_factory=dict)
    """Results by verdict."""
    warnings: list[str] = field(default_factory=list)
    exit_code: int = 0
    gate: str = ""
    """FAIL, PASS, INCONCLUSIVE or NOT COMPARABLE: what the exit code means."""


@dataclass
class Report:
    """What one command compared."""

    comparisons: list[Comparison]
    settings: dict[str, Any]
    tool: str
    exit_code: int
    warn_only: bool = False
    self_check: dict[str, Any] | None = None
    """Realised false alarms of A/A on this machine, from the noise floor."""
    version: int = VERSION


def to_json(report: Report) -> str:
    """The whole model. NaN and infinity are null."""
    return json.dumps(plain(dataclasses.asdict(report)), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def plain(value: Any) -> Any:
    """JSON types only."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int, bool)) else str(value)
