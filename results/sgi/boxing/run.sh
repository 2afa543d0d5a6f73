#!/usr/bin/env bash
# Boxing, random play: does SGI pretraining help, on frozen features? Resumable; about 40 minutes on 2 idle cores.
# Protocol (fixed before the run): docs/sgi.md, "Experiment: Boxing".   Usage: results/sgi/boxing/run.sh [OUT]
set -euo pipefail
out=${1:-runs/boxing}
seeds=${SEEDS:-"0 1 2"}
python=${PYTHON:-.venv/bin/python}

$python -m sgi.collect --game boxing --steps 20000 --out "$out/train" --seed 0 --ram
$python -m sgi.collect --game boxing --steps 4000 --out "$out/test" --seed 1 --ram

pretrain() { # arms
  for seed in $seeds; do
    for arm in "$@"; do
      $python -m launch.train --config "configs/sgi/pretrain.py:$arm" --config.data.dir="$out/train" --config.seed="$seed" \
        --workdir "$out/pretrain/$arm-$seed"
    done
  done
}

pretrain small small_SI small_untrained small_S small_I
$python -m sgi.probe "$out"/pretrain/* --train "$out/train" --test "$out/test" --game boxing --out "$out/probes.json"
for seed in $seeds; do
  for arm in small small_SI small_untrained; do
    $python -m launch.train --config configs/sgi/finetune.py:small_cached --config.seed="$seed" \
      --config.sources.init="$out/pretrain/$arm-$seed" --workdir "$out/frozen/$arm-$seed"
  done
done
