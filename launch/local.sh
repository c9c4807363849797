#!/usr/bin/env bash
# Runs the main job on this machine, from the root of the repository:
#
#   launch/local.sh --config=configs/digits_manual.py:demo --workdir=runs/demo
#
# PROCESSES=4   number of processes, each with one GPU where there are GPUs.
#               One process (the default) uses all devices.
# RESTARTS=3    how often all processes are started again after one of them was
#               stopped or killed. Ctrl-C and SIGTERM to this script end it.
#
# Exit code: 0 if all processes succeed, otherwise their largest exit code.
set -euo pipefail

processes=${PROCESSES:-1}
restarts=${RESTARTS:-0}
PATH=$PWD/.venv/bin:$PATH
stopped=0 interrupted=0
if [[ ! $processes =~ ^[1-9][0-9]*$ || ! $restarts =~ ^[0-9]+$ ]]; then
  echo "error: PROCESSES=$processes RESTARTS=$restarts: both must be numbers," \
    "PROCESSES at least 1" >&2
  exit 1
fi
# Each process gets a process group: a Ctrl-C reaches this script alone, which
# passes it on.
set -m

# shellcheck disable=SC2329  # The traps call it.
pass_on() {
  stopped=1 interrupted=1
  local pid
  for pid in $(jobs -p); do
    kill "-$1" "$pid" 2>/dev/null || true
  done
}
trap 'pass_on TERM' TERM
trap 'pass_on INT' INT

run() { # Starts all processes, waits for them, sets `code`.
  local flags=() gpus=() pids=() pid process result
  if ((processes > 1)); then
    local port
    port=$(python -c '
import socket
with socket.socket() as free:
  free.bind(("localhost", 0))
  print(free.getsockname()[1])')
    flags=(--coordinator="localhost:$port" --num_processes="$processes")
    IFS=, read -ra gpus \
      <<<"${CUDA_VISIBLE_DEVICES:-$(seq -s, 0 $((processes - 1)))}"
    if ((${#gpus[@]} < processes)); then
      echo "error: CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES names fewer GPUs" \
        "than PROCESSES=$processes" >&2
      exit 1
    fi
  fi
  for ((process = 0; process < processes && !stopped; process++)); do
    (
      if ((processes > 1)); then
        export CUDA_VISIBLE_DEVICES=${gpus[process]}
        flags+=(--process_id="$process")
      fi
      set -- "${flags[@]}" "$@"
      exec python -m ecos_jax.train "$@"
    ) &
    pids+=($!)
  done
  code=$((stopped ? 75 : 0))
  for pid in "${pids[@]}"; do
    # A trapped signal ends `wait`, not the process.
    while true; do
      interrupted=0 result=0
      wait "$pid" || result=$?
      ((interrupted)) || break
    done
    ((result > code)) && code=$result
  done
  return 0
}

run "$@"
# 1 is an error that would recur, or a process that ended because another was
# killed; that one's code is larger. 130 is Ctrl-C.
while ((!stopped && code > 1 && code != 130 && restarts-- > 0)); do
  echo "local.sh: exit code $code; all processes are started again" >&2
  run "$@"
done
exit "$code"
