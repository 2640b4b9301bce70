"""`bench compare`: a regression gate for result CSVs.

    files → read → Side → match → Pairing → decide, accuracy → Comparison → gate → render_*

Nothing here imports torch. `docs/compare.md` says what the verdicts mean.
"""
