#!/usr/bin/env bash
# All training runs of results/kbc: five seeds, a run each, seed by seed so that a stop in the middle leaves every arm alike.
# About two hours and a half on 2 idle cores. Started again it resumes.
#   QUINTET_DATA=DATA results/kbc/run.sh RUNS
set -euo pipefail
runs=${1:?folder for the runs}
cd "$(dirname "$0")/../.."
train() { # variant seed; a finished run is left alone
  grep -qs '"status": "done"' "$runs/$1/$2/run.json" ||
    python -m launch.train --config "configs/kbc/complete.py:$1" --config.seed="$2" --workdir "$runs/$1/$2"
}
for seed in 0 1 2 3 4; do
  for arm in factorized dnn prototypical bilinear factorized_dense fusion; do
    train "$arm" "$seed"
    train "${arm}_random" "$seed"
  done
done
for seed in 0 1 2; do
  train factorized_cn82k "$seed"
  train fusion_cn82k "$seed"
done
