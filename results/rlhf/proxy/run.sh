#!/usr/bin/env bash
# Experiment E2: PPO, RLOO, online DPO and Best-of-2 against a proxy of a gold judge, three seeds. Resumable (queue.sh).
#   QUINTET_DATA=DATA results/rlhf/proxy/run.sh RUNS SFT     SFT: the run `sft` of results/rlhf/sentiment/run.sh
# The gold judge is VADER. Two samples of the SFT model for each of 12,000 prompts are ordered by it, and the proxy learns that.
set -euo pipefail
sft=$(realpath "${2:?supervised run}")
source "$(dirname "$0")/../../queue.sh"
pairs="$runs/pairs.jsonl"
(locked pairs.jsonl; [ -s "$pairs" ] || python -m rlhf_jax.preferences "$sft" --gold lexicon --out "$pairs" --prompts 12000)
need proxy rlhf/reward_model.py:small_pairs --config.sources.init="$sft" --config.pairs="$pairs"
start=(--config.sources.init="$sft" --config.sources.reward="$runs/proxy")
for seed in 0 1 2; do
  for arm in ppo rloo dpo best_of_n; do
    critic=(); [ "$arm" != ppo ] || critic=(--config.sources.value="$runs/proxy")
    train "rl/$arm/$seed" "rlhf/rl.py:small_proxy_$arm" "${start[@]}" "${critic[@]}" --config.seed="$seed"
  done
done
