#!/usr/bin/env bash
# Experiment E6: language drift in the translation game, three seeds: a pretraining run each, then every arm from it.
#   QUINTET_DATA=DATA results/rlhf/translation/run.sh RUNS
# About 20 minutes of one core a run, 27 runs. Started again it resumes. Two workers, a core each, share the work:
#   taskset -c 0 results/rlhf/translation/run.sh RUNS 0 2 & taskset -c 1 results/rlhf/translation/run.sh RUNS 1 2
set -euo pipefail
runs=${1:?folder for the runs} worker=${2:-0} workers=${3:-1}
cd "$(dirname "$0")/../../.."
turn=0
finished() { grep -qs '"status": "done"' "$runs/$1/run.json"; }
train() { # workdir variant [overrides]; every `workers`-th run is this worker's; a finished run is left alone
  ((turn++ % workers == worker)) || return 0
  finished "$1" || python -m launch.train --config "configs/rlhf/translation.py:$2" --workdir "$runs/$1" "${@:3}"
}
for seed in 0 1 2; do
  train "pretrain/$seed" small_pretrain --config.seed="$seed"
done
for seed in 0 1 2; do
  until finished "pretrain/$seed"; do sleep 10; done # another worker's
  for arm in frozen reinforce kl multitask s2p sil elastic gumbel; do
    train "$arm/$seed" "small_$arm" --config.seed="$seed" --config.init_from="$runs/pretrain/$seed"
  done
done
