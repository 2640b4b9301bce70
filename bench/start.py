"""Run a module of bench under any interpreter, whether or not bench is installed there.

Usage: python start.py MODULE ARGUMENT...

It loads the package `bench` from its own folder and leaves `sys.path` to the interpreter: putting this installation's
site-packages there would mix the libraries of two environments.
"""

import importlib
import importlib.util
import sys
from pathlib import Path

if __name__ == "__main__":
    package = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != package]
    spec = importlib.util.spec_from_file_location(
        "bench", package / "__init__.py", submodule_search_locations=[str(package)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench"] = module
    spec.loader.exec_module(module)
    sys.exit(importlib.import_module(sys.argv[1]).main(sys.argv[2:]))
