"""`bench compare` and its subcommands."""

from __future__ import annotations

import importlib

from .guard import guarded

COMMANDS = {"noise": "calibrate", "plan": "plan", "self-check": "selfcheck"}
"""Subcommand -> module with its `run`. Everything else is a comparison."""


def main(argv: list[str]) -> int:
    """Run the command and return its exit code."""
    return guarded(_run, argv)


def _run(argv: list[str]) -> int:
    name = COMMANDS.get(argv[0]) if argv else None
    module = importlib.import_module(f".{name or 'command'}", __package__)
    code: int = module.run(argv[1:] if name else argv)
    return code
