#!/usr/bin/env bash
# Accuracy of one model on one device, with lm-eval.
#
#   ./run_accuracy.sh                                    the built-in trained model on its own task: no network needed
#   model=meta-llama/Llama-2-7b-hf ./run_accuracy.sh     lambada_standard; a,b sweeps
#   model=llama-2-7b task=lambada_openai,piqa limit=1000 bs=32 dtype=float16 device=xpu ./run_accuracy.sh
#   model=llama-2-7b task=lambada_openai ./run_accuracy.sh accuracy.data=lambada.jsonl     documents of a local file
#   ./run_accuracy.sh -m workload=generate,accuracy      with latency; any override of `bench run`
#
# The environment, with lm-eval, is made on first use: see setup_env.sh for TORCH, VENV and BENCH_PYTHON.
set -euo pipefail

# 1. The environment.
EXTRAS=${EXTRAS:-accuracy}
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
setup_env

# 2. Variables become overrides. Several values, separated by commas, are swept.
accuracy_overrides
model_overrides tiny-trained

# 3. Run. What is given on the command line comes last and wins.
exec "$python" -m bench run "${sweep[@]}" "${args[@]}" "$@"
