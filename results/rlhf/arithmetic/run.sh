#!/usr/bin/env bash
# Experiment E5: exact match of whole-number additions and subtractions, three seeds. Resumable (queue.sh).
#   QUINTET_DATA=DATA results/rlhf/arithmetic/run.sh RUNS
# The supervised model is stopped early on purpose, so that there is something left to learn.
set -euo pipefail
source "$(dirname "$0")/../../queue.sh"
need sft rlhf/sft.py:small_arithmetic
for seed in 0 1 2; do
  for arm in dpo rloo ppo; do
    train "rl/$arm/$seed" "rlhf/rl.py:small_arithmetic_$arm" --config.sources.init="$runs/sft" --config.seed="$seed"
  done
done
