#!/usr/bin/env bash
# Runs the main job on all workers of a TPU slice, from the root of a clone:
#
#   ZONE=us-west4-a NFS=10.0.0.2:/share launch/tpu_vm.sh \
#     --config=configs/digits_manual.py --workdir=/mnt/ecos/runs/usps
#
# NFS       file share to mount at /mnt/ecos on every worker, for the workdir
# NAME      name of the queued resource and its TPU VM (default: ecos)
# TYPE      accelerator type (default: v5litepod-16)
# RUNTIME   runtime version (default: v2-alpha-tpuv5-lite)
# SPOT      1: a spot TPU, requested again whenever it is taken away
#
# Requests the queued resource if there is none, waits for it, installs HEAD and
# runs. The resource stays afterwards: delete it with the printed command.
set -euo pipefail

: "${ZONE:?set ZONE, for instance us-west4-a}"
: "${NFS:?set NFS, as HOST:/SHARE: all workers need the same workdir}"
name=${NAME:-ecos}
type=${TYPE:-v5litepod-16}
runtime=${RUNTIME:-v2-alpha-tpuv5-lite}
poll=${POLL_SECONDS:-30}
set -- --coordinator=auto "$@"

queued() { # queued COMMAND OPTION...: runs gcloud on the queued resource.
  gcloud compute tpus queued-resources "$1" "$name" --zone="$ZONE" "${@:2}"
}

state() { # Prints nothing if there is no such resource.
  queued describe --format='value(state.state)' 2>/dev/null || true
}

acquire() { # Returns once the TPU VM is ready.
  while true; do
    case $(state) in
      ACTIVE) return ;;
      '') queued create --node-id="$name" --accelerator-type="$type" \
        --runtime-version="$runtime" ${SPOT:+--spot} ;;
      # A TPU that was taken away stays in the queue until it is deleted.
      SUSPENDED) queued delete --force --quiet ;;
      FAILED)
        echo "tpu_vm.sh: the request failed; queued-resources describe $name" \
          "says why. Delete it before you ask again." >&2
        exit 1
        ;;
      *) sleep "$poll" ;;
    esac
  done
}

everywhere() { # everywhere COMMAND: on all workers at once.
  gcloud compute tpus tpu-vm ssh "$name" --zone="$ZONE" --worker=all \
    --command="$1"
}

install() { # The runtime's own Python is too old: uv fetches one.
  local archive=$folder/ecos_jax.tar.gz
  git archive --output="$archive" HEAD &&
    gcloud compute tpus tpu-vm scp "$archive" "$name:ecos_jax.tar.gz" \
      --zone="$ZONE" --worker=all &&
    everywhere "set -e
      mkdir -p ecos_jax && tar -xzf ecos_jax.tar.gz -C ecos_jax && cd ecos_jax
      sudo mkdir -p /mnt/ecos
      mountpoint -q /mnt/ecos || sudo mount -t nfs ${NFS@Q} /mnt/ecos
      python3 -m pip install --quiet --user uv
      python3 -m uv venv --quiet --allow-existing --python=3.11 .venv
      python3 -m uv pip install --quiet --constraint=constraints.txt \
        --editable='.[digits,pretrained]' 'jax[tpu]'"
}

folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
echo "tpu_vm.sh: to give the TPU back: gcloud compute tpus queued-resources" \
  "delete $name --zone=$ZONE --force" >&2
while true; do
  acquire
  code=0
  # One condition, so that a TPU lost while installing is requested again.
  { install && everywhere "cd ecos_jax && PATH=\$PWD/.venv/bin:\$PATH &&
    exec python -m ecos_jax.train ${*@Q}"; } || code=$?
  # 75: a worker was stopped. Any other code: the TPU was lost, or an error.
  if ((code == 0)) || { ((code != 75)) && [[ $(state) == ACTIVE ]]; }; then
    exit "$code"
  fi
  echo "tpu_vm.sh: exit code $code, $name is $(state); trying again" >&2
  sleep "$poll"
done
