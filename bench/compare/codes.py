"""Exit codes, importable before anything heavy is."""

OK, FAILED, USAGE, UNDECIDED, NOTHING, INTERNAL = 0, 1, 2, 3, 4, 5
PRECEDENCE = (INTERNAL, USAGE, FAILED, NOTHING, UNDECIDED, OK)
