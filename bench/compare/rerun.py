"""The confirm list: cells that a second measurement should decide, as overrides of `bench run`."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

from .gate import undecided
from .model import STATUS, Comparison, Result


def confirm_list(comparisons: Iterable[Comparison]) -> str:
    """One line of overrides per flagged or undecided cell. Accuracy is left out: measuring again gives the same."""
    lines = [
        " ".join(shlex.quote(word) for word in overrides(result.key))
        for comparison in comparisons
        for result in comparison.results
        if _doubtful(result)
    ]
    return "".join(f"{line}\n" for line in dict.fromkeys(lines))


def _doubtful(result: Result) -> bool:
    latency = result.metric != STATUS and result.tier != "T3"
    return latency and result.gates and not result.waived and (result.verdict == "regressed" or undecided(result))


def overrides(key: dict[str, str]) -> list[str]:
    """Overrides of `bench run` that measure the cell with these key columns."""
    words = []
    for name, value in key.items():
        choice = re.fullmatch(r"([\w-]+)\((.*)\)", value)
        if not value or name in ("input_tokens", "output_tokens", "task") or (name, value) == ("stack", "current"):
            continue
        if name in ("num_beams", "batch_size"):
            words.append(f"{name}=[{value}]")
        elif name == "decoding":
            # Beam search follows from the number of beams.
            words += ["decoding=sample"] if value == "sample" else []
        elif name == "env":
            pairs = (pair.split("=", 1) for pair in value.split())
            words.append("env={" + ",".join(f"{variable}:{setting}" for variable, setting in pairs) + "}")
        elif choice:
            words.append(f"{name}={choice[1]}")
            words += [f"{name}.{setting}" for setting in choice[2].split(",") if setting]
        else:
            words.append(f"{name}={value}")
    if key.get("input_tokens") and key.get("output_tokens"):
        words.append(f"lengths=[{key['input_tokens']}/{key['output_tokens']}]")
    return words
