#!/usr/bin/env bash
# The main job on the slide that ships with the project, from nothing to OUT/report.html, on a CPU.
#
#   bash launch/demo.sh [OUT] [--config=configs/demo.py[:dit]] [--quick]
#
# OUT is `out` by default; another config needs another OUT. Run again, it goes on where it stopped or reuses what
# is there. --quick shortens training and sampling to see that everything works; its numbers mean nothing.
set -euo pipefail
# shellcheck source=launch/environment.sh
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

OUT=out
CONFIG=configs/demo.py
QUICK=
REGION=768,2048,512,256 # held out: no training patch touches it
for argument in "$@"; do
  case "$argument" in
    --config=*) CONFIG="${argument#--config=}" ;;
    --quick) QUICK=1 ;;
    -*) echo "error: unknown option $argument; see the head of launch/demo.sh" >&2; exit 2 ;;
    *) OUT="$argument" ;;
  esac
done
use_every_core
mkdir -p "$OUT"
OUT="$(cd "$OUT" && pwd)"
cd "$ROOT"
TRAIN=()
if [ -n "$QUICK" ]; then
  TRAIN=(--config.steps=30 --config.checkpoint_every=15 --config.sample_every=30 --config.log_every=5 --config.sampling.steps=4)
fi

# Seconds per phase, summed over interrupted runs; a phase that was done keeps the time it took then.
phase() {
  local name="$1" began="$SECONDS" status=0 before=0
  shift
  [ -e "$OUT/.done.$name" ] || before="$(cat "$OUT/.seconds.$name" 2>/dev/null || echo 0)"
  echo "== $name" >&2
  "$@" || status=$?
  [ -e "$OUT/.done.$name" ] || echo $((before + SECONDS - began)) >"$OUT/.seconds.$name"
  [ "$status" = 0 ] || exit "$status"
  touch "$OUT/.done.$name"
}
command_of() { "$PYTHON" -m "ssl_diffusion.$1" "${@:2}"; }
unless() { # unless FILE COMMAND...: runs the command if the file is not newer than the model
  [ "$1" -nt "$OUT/train/model/model.json" ] || "${@:2}"
}
timings() {
  local name value line=""
  for name in install prepare train sample stitch; do
    value="$(cat "$OUT/.seconds.$name")"
    line="$line\"$name\": $value, "
  done
  printf '{%s}\n' "${line%, }" >"$OUT/timings.json"
}

phase install make_environment
phase prepare command_of prepare --config="$CONFIG" --output="$OUT/records"
phase train command_of train --config="$CONFIG" --workdir="$OUT/train" --config.data.dir="$OUT/records" ${TRAIN[@]+"${TRAIN[@]}"}
phase sample unless "$OUT/samples/samples.json" \
  command_of sample --model="$OUT/train/model" --records="$OUT/records" --output="$OUT/samples"
phase stitch unless "$OUT/stitched.json" \
  command_of generate --model="$OUT/train/model" --reference=demo:cmu_small_region.svs --region="$REGION" \
  --output="$OUT/stitched.png"
timings
command_of evaluate --model="$OUT/train/model" --records="$OUT/records" --train="$OUT/train" \
  --samples="$OUT/samples" --stitched="$OUT/stitched.png" --timings="$OUT/timings.json" --output="$OUT"
echo "report: $OUT/report.html"
