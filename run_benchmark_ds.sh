#!/usr/bin/env bash
# First-token and per-token latency of one model split over several devices, one MPI rank each.
#
#   ./run_benchmark_ds.sh                                       the built-in tiny model on two ranks
#   nproc=2 model=meta-llama/Llama-2-7b-hf ./run_benchmark_ds.sh    a model of configs/model, a hub id or a folder
#   nproc=4 beam=1 bs=8 input=32 output=32 iter=5 warmup=2 dtype=float16 tp=transformers ./run_benchmark_ds.sh
#   nproc=8 ppn=4 hostfile=hosts.txt model=llama-2-70b ./run_benchmark_ds.sh      several machines: docs/distributed.md
#   ./run_benchmark_ds.sh weights=random launcher=torchrun      any override of `bench run`
#
# Defaults are those of the Intel GPU scripts: batch 1, 1024/128 tokens, beams 1 and 4, 10 iterations after 3 warm-ups,
# DeepSpeed. The environment, with Intel MPI and DeepSpeed, is made on first use: see setup_env.sh.
set -euo pipefail

# 1. The environment.
EXTRAS=${EXTRAS:-mpi,deepspeed}
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
setup_env

# 2. Variables become overrides. Several values, separated by commas, are swept.
rank_overrides
model_overrides ""
latency_overrides

# 3. Run. What is given on the command line comes last and wins.
exec "$python" -m bench run "${sweep[@]}" "${args[@]}" "$@"
