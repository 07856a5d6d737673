#!/usr/bin/env bash
# Trains on a TPU slice of a GKE cluster, as a JobSet.
#
#   bash launch/gke.sh --config=configs/bracs.py --workdir=/runs/DIR --name=bracs --image=IMAGE --claim=CLAIM:/runs
#     --accelerator=tpu-v5p-slice --topology=4x4x4 [--chips-per-host=4] [--attempts=100] [--dry-run]
#     [-- --config.field=value ...]
#
# IMAGE is built from launch/Dockerfile. CLAIM is a volume claim that many pods may write to; it is mounted at the path
# behind the colon. kubectl's current context and namespace are used. --dry-run prints launch/jobset.yaml filled in.
# A preempted or failed job starts again from the last checkpoint, --attempts times at most.
set -euo pipefail
# shellcheck source=launch/launcher.sh
. "$(dirname "${BASH_SOURCE[0]}")/launcher.sh"

CHIPS_PER_HOST=4 ATTEMPTS=100 NAME='' IMAGE='' CLAIM='' ACCELERATOR='' TOPOLOGY=''
read_options "name image claim accelerator topology chips-per-host attempts" "$@"
need config workdir name image claim accelerator topology
need_numbers chips-per-host attempts
need_shared_paths
cd "$ROOT"
need_config
[[ "$CLAIM" == ?*:/?* ]] || fail "--claim=$CLAIM; expected CLAIM:/PATH, the volume claim and where it is mounted"
MOUNT="${CLAIM#*:}"
[[ "$WORKDIR/" == "${MOUNT%/}"/* ]] || fail "--workdir=$WORKDIR is not under $MOUNT, where --claim is mounted; it would go with the pod"
[[ "$TOPOLOGY" =~ ^[1-9][0-9]*(x[1-9][0-9]*)+$ ]] || fail "--topology=$TOPOLOGY; expected chips per axis, e.g. 16x16 or 4x4x4"
CHIPS=$((${TOPOLOGY//x/*}))
[ $((CHIPS % CHIPS_PER_HOST)) -eq 0 ] || fail "--topology=$TOPOLOGY has $CHIPS chips, not a multiple of --chips-per-host=$CHIPS_PER_HOST"

# scalar WORD: as YAML reads it in double quotes.
scalar() {
  printf '"%s"' "$(printf %s "$1" | sed 's/[\\"]/\\&/g')"
}

training_command python --multihost
WORDS=''
for word in "${COMMAND[@]}"; do WORDS="$WORDS${WORDS:+, }$(scalar "$word")"; done

VALUES=(
  @NAME@ "$(scalar "$NAME")"
  @IMAGE@ "$(scalar "$IMAGE")"
  @CLAIM@ "$(scalar "${CLAIM%%:*}")"
  @MOUNT@ "$(scalar "$MOUNT")"
  @ACCELERATOR@ "$(scalar "$ACCELERATOR")"
  @TOPOLOGY@ "$(scalar "$TOPOLOGY")"
  @CHIPS_PER_HOST@ "$CHIPS_PER_HOST"
  @HOSTS@ "$((CHIPS / CHIPS_PER_HOST))"
  @RESTARTS@ "$((ATTEMPTS - 1))"
  @SUMMARY@ "$(scalar "$WORKDIR/summary.json")"
  @COMMAND@ "$WORDS"
)

# fill: launch/jobset.yaml with its @NAMES@ replaced; no line has two.
fill() {
  local line n
  while IFS= read -r line; do
    for ((n = 0; n < ${#VALUES[@]}; n += 2)); do
      if [[ "$line" == *"${VALUES[n]}"* ]]; then
        line="${line%%"${VALUES[n]}"*}${VALUES[n + 1]}${line#*"${VALUES[n]}"}"
        break
      fi
    done
    printf '%s\n' "$line"
  done <launch/jobset.yaml
}

if [ -n "$DRY_RUN" ]; then
  echo "# kubectl apply -f -"
  fill
else
  fill | kubectl apply -f -
  say "follow it by: kubectl logs --follow --selector=jobset.sigs.k8s.io/jobset-name=$NAME"
fi
