#!/usr/bin/env bash
# Accuracy of one model split over several devices, one MPI rank each, with lm-eval.
#
#   ./run_accuracy_ds.sh                                 the built-in trained model on two ranks: no network needed
#   nproc=2 model=meta-llama/Llama-2-7b-hf ./run_accuracy_ds.sh    lambada_standard
#   nproc=4 model=llama-2-70b task=lambada_openai limit=1000 bs=32 dtype=float16 tp=transformers ./run_accuracy_ds.sh
#   nproc=8 ppn=4 hostfile=hosts.txt model=llama-2-70b ./run_accuracy_ds.sh        several machines: docs/distributed.md
#
# The environment, with lm-eval, Intel MPI and DeepSpeed, is made on first use: see setup_env.sh.
set -euo pipefail

# 1. The environment.
EXTRAS=${EXTRAS:-accuracy,mpi,deepspeed}
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
setup_env

# 2. Variables become overrides. Several values, separated by commas, are swept.
accuracy_overrides
rank_overrides
model_overrides tiny-trained

# 3. Run. What is given on the command line comes last and wins.
exec "$python" -m bench run "${sweep[@]}" "${args[@]}" "$@"
