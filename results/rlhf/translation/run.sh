#!/usr/bin/env bash
# Experiment E6: language drift in the translation game: one pretrained pair, every arm from it with three seeds. Resumable (queue.sh).
#   QUINTET_DATA=DATA results/rlhf/translation/run.sh RUNS
set -euo pipefail
source "$(dirname "$0")/../../queue.sh"
need pretrain rlhf/translation.py:small_pretrain
for arms in "frozen reinforce kl s2p elastic" "multitask sil gumbel"; do
  for seed in 0 1 2; do
    for arm in $arms; do
      train "game/$arm/$seed" "rlhf/translation.py:small_$arm" --config.seed="$seed" --config.sources.init="$runs/pretrain"
    done
  done
done
