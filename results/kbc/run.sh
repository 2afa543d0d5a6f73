#!/usr/bin/env bash
# All training runs of results/kbc, 5 seeds each (one program a run), about 2 hours on 2 idle cores. Started again it resumes.
#   QUINTET_DATA=DATA results/kbc/run.sh runs/kbc
set -euo pipefail
runs=${1:?folder for the runs}
cd "$(dirname "$0")/../.."
train() { # variant
  python -m launch.train --config "configs/kbc/complete.py:$1" --config.population=5 --workdir "$runs/$1"
}
for model in factorized dnn prototypical bilinear; do
  train "${model}_random"
  train "$model"
done
train factorized_dense
train factorized_dense_random
train dnn_dense
train dnn_dense_random
train fusion
train fusion_random
