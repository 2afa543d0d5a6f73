#!/usr/bin/env bash
# Experiments E0 and E1: Elastic Reset on the sentiment of continuations of IMDB sentences, three seeds. Resumable (queue.sh).
#   QUINTET_DATA=DATA results/rlhf/sentiment/run.sh RUNS && python -m rlhf_jax.study RUNS/rl --out results/rlhf/sentiment
set -euo pipefail
source "$(dirname "$0")/../../queue.sh"
need sft rlhf/sft.py:small_imdb
need judge rlhf/reward_model.py:small_labels --config.sources.init="$runs/sft"
start=(--config.sources.init="$runs/sft" --config.sources.reward="$runs/judge")
for seed in 0 1 2; do
  for arm in ppo elastic elastic_often ema init elastic_opt; do
    train "rl/$arm/$seed" "rlhf/rl.py:small_imdb_$arm" "${start[@]}" --config.seed="$seed"
  done
  for kl in 0.01 0.02 0.05 0.1 0.2; do
    train "rl/kl_$kl/$seed" rlhf/rl.py:small_imdb_kl "${start[@]}" --config.seed="$seed" --config.rl.kl="$kl"
  done
done
