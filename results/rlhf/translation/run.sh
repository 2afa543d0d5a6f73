#!/usr/bin/env bash
# Experiment E6: language drift in the translation game, three seeds: a pretraining run each, then every arm from it.
#   QUINTET_DATA=DATA results/rlhf/translation/run.sh RUNS
set -euo pipefail
source "$(dirname "$0")/../queue.sh"
for seed in 0 1 2; do
  train "pretrain/$seed" translation.py:small_pretrain --config.seed="$seed"
done
for seed in 0 1 2; do
  need "pretrain/$seed" translation.py:small_pretrain --config.seed="$seed"
  for arm in frozen reinforce kl multitask s2p sil elastic gumbel; do
    train "$arm/$seed" "translation.py:small_$arm" --config.seed="$seed" --config.init_from="$runs/pretrain/$seed"
  done
done
