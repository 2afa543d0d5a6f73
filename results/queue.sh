# Sourced by experiments. Any number of workers share one list of runs, in its order, a lock each:
#   train NAME CONFIG [OVERRIDES]   unless it is finished, or another worker has it; CONFIG lies in configs/
#   need NAME CONFIG [OVERRIDES]    the same, but waits for the other worker: what follows starts from this run
# An unfinished run goes on from its last checkpoint. On two cores: taskset -c 0 RUN.SH RUNS & taskset -c 1 RUN.SH RUNS
runs=$(realpath -m "${1:?folder for the runs}")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
locked() { mkdir -p "$(dirname "$runs/$1")" && exec 9>"$runs/$1.lock" && flock "${@:2}" 9; }
once() {
  grep -qs '"status": "done"' "$runs/$1/run.json" ||
    python -m launch.train --config "configs/$2" --workdir "$runs/$1" "${@:3}"
}
need() { (locked "$1" && once "$@"); }
train() { (locked "$1" -n || exit 0; once "$@"); }
