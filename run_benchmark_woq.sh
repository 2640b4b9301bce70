#!/usr/bin/env bash
# Latency with weight-only INT4 beside floating point, of one model on one device.
#
#   ./run_benchmark_woq.sh                                   the built-in tiny model on the best device here
#   model=meta-llama/Llama-2-7b-hf dtype=float16 device=xpu ./run_benchmark_woq.sh    a hub id or a folder; a,b sweeps
#   beam=1 bs=8 input=32 output=32 iter=5 warmup=2 ./run_benchmark_woq.sh
#   woq=sym_int4,nf4 ./run_benchmark_woq.sh                  other formats than woq_int4
#   stack=ipex-2.8 engine=ipex ./run_benchmark_woq.sh        neural-compressor and IPEX, after bench stack create ipex-2.8
#   ./run_benchmark_woq.sh precision=woq_int4 precision.group_size=128     any override of `bench run`
#
# dtype is that of the floating-point half. The provider of INT4 is the best that is installed for the device; accuracy:
# dtype=woq_int4 ./run_accuracy.sh. The environment is made on first use: see setup_env.sh.
set -euo pipefail

# 1. The environment, with the libraries that convert weights, which the precisions ask for.
dtype=${dtype:-auto},${woq:-woq_int4}
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
setup_env

# 2. Variables become overrides. The precisions are swept, so that one table has them side by side.
model_overrides ""
latency_overrides
add stack "${stack:-}"
add engine "${engine:-}"

# 3. Run. What is given on the command line comes last and wins.
exec "$python" -m bench run "${sweep[@]}" "${args[@]}" "$@"
