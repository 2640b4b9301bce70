"""Models: as data (`spec`, `shape`), and in the worker as modules (`build`, `cost`, `noise`, `prompts`)."""
