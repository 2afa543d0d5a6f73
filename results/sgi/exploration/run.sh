#!/usr/bin/env bash
# How many cells of Ms. Pac-Man do 409,600 steps see? A curious agent, random play with held and with single actions, and the cell
# explorer; three seeds each. Protocol (fixed before the runs): docs/sgi.md. Resumable, any number of workers (queue.sh).
#   taskset -c 0 results/sgi/exploration/run.sh RUNS && PYTHONPATH=. python results/sgi/exploration/summarise.py RUNS
set -euo pipefail
source "$(dirname "$0")/../../queue.sh"
agent=(sgi/curiosity.py:small --config.env.game=MsPacman --config.steps=400)
collect() { (locked "$1.data" && python -m sgi.collect --out "$runs/$1" "${@:2}"); }

for seed in 0 1 2; do
  train "agent/$seed" "${agent[@]}" --config.seed="$seed"
done
for seed in 0 1 2; do
  need "agent/$seed" "${agent[@]}" --config.seed="$seed"
  collect "curious/$seed" --policy learner --workdir "$runs/agent/$seed"
  play=(--game MsPacman --steps 409600 --seed "$seed")
  collect "held/$seed" "${play[@]}" --envs 16
  collect "single/$seed" "${play[@]}" --envs 16 --repeat 1
  collect "cells/$seed" "${play[@]}" --policy cells
done
