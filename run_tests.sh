#!/usr/bin/env bash
# Everything that CI runs: lint, types, tests. No GPU and no network but the package index are needed.
#
#   ./run_tests.sh                    all of it
#   ./run_tests.sh tests/test_plan.py -k memory     the same, with other arguments for pytest
set -euo pipefail

# 1. The environment, with the tools for development.
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
EXTRAS=${EXTRAS:-dev,accuracy,mpi,deepspeed,torchao,bitsandbytes,auto-round,neural-compressor}
setup_env
cd "$root"

# 2. Lint and types.
"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m mypy

# 3. Tests: by default two at a time, and then those alone that time the machine or fill it.
if [ $# -gt 0 ]; then exec "$python" -m pytest "$@"; fi
failed=0
"$python" -m pytest -n 2 -m 'not alone and not slow and not stack' || failed=1
"$python" -m pytest -m 'alone and not slow and not stack' || failed=1
exit $failed
