#!/usr/bin/env bash
# End-to-end fine-tuning at 10k agent steps: from scratch, from SGI on random play (R) and on learners' play (W); two games, three
# seeds. Protocol (fixed before the runs of the comparison): docs/sgi.md. Resumable, any number of workers (queue.sh).
#   taskset -c 0 results/sgi/learning/run.sh RUNS & taskset -c 1 results/sgi/learning/run.sh RUNS
# The second part, on the data of the first: DATA=ready GAMES=Krull SEEDS="3 4 5 6 7" results/sgi/learning/run.sh RUNS
set -euo pipefail
source "$(dirname "$0")/../../queue.sh"
agent=(--config.agent.spr=0 --config.eval.every=3000)  # self-prediction off: it would take twice the time
collect() { (locked "$1.data" && python -m sgi.collect --out "$runs/$1" "${@:2}"); }

weak() { # a learner's whole experience; of the two, one at each learning rate
  need "weak/$game-$1" sgi/finetune.py:small_none "${agent[@]}" --config.env.game="$game" --config.seed="$1" --config.optim.lr="$2"
  collect "W" --policy learner --workdir "$runs/weak/$game-$1" --run "$1"
}
pretrain() { # DATA SEED
  need "pretrain/$game-$1/$2" sgi/pretrain.py:small --config.data.dir="$runs/$1" --config.data.game="$game" --config.seed="$2"
}
finetune() { # ARM SEED [INIT]
  local variant=small_sgi; [ "$1" != none ] || variant=small_none
  train "finetune/$game/$1/$2" "sgi/finetune.py:$variant" "${agent[@]}" --config.env.game="$game" --config.seed="$2" "${@:3}"
}

if [ "${DATA:-}" != ready ]; then
  for game in ${GAMES:-Krull Boxing}; do
    collect "R" --game "$game" --steps 20000
    weak 100 3e-4
    weak 101 1e-4
  done
fi
for seed in ${SEEDS:-0 1 2}; do
  for game in ${GAMES:-Krull Boxing}; do
    finetune none "$seed"
    for data in R W; do
      pretrain "$data" "$seed"
      finetune "$data" "$seed" --config.sources.init="$runs/pretrain/$game-$data/$seed"
    done
  done
done
