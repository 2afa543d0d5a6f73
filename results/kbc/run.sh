#!/usr/bin/env bash
# All training runs of results/kbc: five seeds, a run each, seed by seed so that a stop in the middle leaves every model alike.
# About 1.5 hours on 2 idle cores. Started again it resumes.
#   QUINTET_DATA=DATA results/kbc/run.sh RUNS
set -euo pipefail
runs=${1:?folder for the runs}
cd "$(dirname "$0")/../.."
epochs=${EPOCHS:-15}
train() { # variant seed
  python -m launch.train --config "configs/kbc/complete.py:$1" --config.seed="$2" --workdir "$runs/$1/$2" --config.steps="$epochs"
}
for seed in 0 1 2 3 4; do
  for model in factorized dnn prototypical bilinear fusion; do
    train "$model" "$seed"
    train "${model}_random" "$seed"
  done
done
for seed in 0 1 2 3 4; do
  train factorized_dense "$seed"
  train factorized_dense_random "$seed"
done
for seed in 0 1 2; do
  train factorized_cn82k "$seed"
done
