#!/usr/bin/env bash
# Experiment E5: exact match of GSM8K's whole-number additions and subtractions, three seeds. Started again it resumes.
#   QUINTET_DATA=DATA results/rlhf/arithmetic/run.sh RUNS
# The supervised model is stopped early on purpose, so that there is something left to learn.
set -euo pipefail
runs=${1:?folder for the runs}
cd "$(dirname "$0")/../../.."
train() { # workdir config [overrides]; a finished run is left alone
  grep -qs '"status": "done"' "$runs/$1/run.json" ||
    python -m launch.train --config "configs/rlhf/$2" --workdir "$runs/$1" "${@:3}"
}
train sft sft.py:small_arithmetic
for seed in 0 1 2; do
  for arm in dpo rloo ppo; do
    train "rl/$arm/$seed" "rl.py:small_arithmetic_$arm" --config.init_from="$runs/sft" --config.seed="$seed"
  done
done
