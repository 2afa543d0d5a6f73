#!/usr/bin/env bash
# All training runs of results/kbc: five seeds, a run each, seed by seed so that a stop in the middle leaves every arm alike.
# About two hours on 2 idle cores. Started again it resumes.
#   QUINTET_DATA=DATA results/kbc/run.sh RUNS
# Two workers, a core each, take a third less time than one on both:
#   taskset -c 0 results/kbc/run.sh RUNS 0 2 & taskset -c 1 results/kbc/run.sh RUNS 1 2
set -euo pipefail
runs=${1:?folder for the runs} worker=${2:-0} workers=${3:-1}
cd "$(dirname "$0")/../.."
turn=0
train() { # variant seed; every `workers`-th run is this worker's; a finished run is left alone
  ((turn++ % workers == worker)) || return 0
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
for seed in 0 1 2; do
  train factorized_static "$seed" # vectors that know words which the training triples lack: what dense L2 takes from them
  train factorized_static_dense "$seed"
done
