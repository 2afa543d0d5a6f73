#!/usr/bin/env bash
# All training runs of results/kbc: five seeds, a run each, seed by seed so that a stop in the middle leaves every model alike.
# About 1.5 hours on 2 idle cores. Started again it resumes.
#   QUINTET_DATA=DATA results/kbc/run.sh RUNS
set -euo pipefail
runs=${1:?folder for the runs}
cd "$(dirname "$0")/../.."
train() { # variant seed [epochs]
  python -m launch.train --config "configs/kbc/complete.py:$1" --config.seed="$2" --workdir "$runs/$1/$2" ${3:+--config.steps=$3}
}
for seed in 0 1 2 3 4; do
  for model in factorized dnn prototypical bilinear; do
    train "$model" "$seed" 15
    train "${model}_random" "$seed" 15
  done
  train fusion "$seed"
  train fusion_random "$seed"
done
for seed in 0 1 2 3 4; do
  train factorized_dense "$seed" 15
  train factorized_dense_random "$seed" 15
done
for seed in 0 1 2; do
  train factorized_cn82k "$seed" 15
  train fusion_cn82k "$seed"
done
