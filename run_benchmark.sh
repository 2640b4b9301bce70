#!/usr/bin/env bash
# First-token and per-token latency of one model on one device.
#
#   ./run_benchmark.sh                                  the built-in tiny model on the best device here
#   model=meta-llama/Llama-2-7b-hf ./run_benchmark.sh   a model of configs/model, a hub id or a folder; a,b sweeps
#   beam=1 bs=8 input=32 output=32 iter=5 warmup=2 dtype=float16 device=xpu ./run_benchmark.sh
#   ./run_benchmark.sh weights=random lengths=[32/32,1024/128] -m precision=fp16,bf16     any override of `bench run`
#
# Defaults are those of the Intel GPU scripts: batch 1, 1024/128 tokens, beams 1 and 4, 10 iterations after 3 warm-ups.
# The environment is made on first use: see setup_env.sh for TORCH, VENV and BENCH_PYTHON.
set -euo pipefail

# 1. The environment.
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
setup_env

# 2. Variables become overrides. Several values, separated by commas, are swept.
model_overrides ""
latency_overrides

# 3. Run. What is given on the command line comes last and wins.
exec "$python" -m bench run "${sweep[@]}" "${args[@]}" "$@"
