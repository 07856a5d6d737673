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

# phase NAME RESULT COMMAND...: runs it, and notes its seconds, summed over interrupted runs. A phase whose RESULT was
# there already keeps the time that it took then.
PHASE=
phase() {
  local result="$2"
  PHASE="$1" BEGAN="$SECONDS" BEFORE=0 DONE=
  shift 2
  if [ -e "$result" ]; then
    DONE=1
    [ -e "$OUT/.seconds.$PHASE" ] || echo 0 >"$OUT/.seconds.$PHASE" # not done by this script
  elif [ -e "$OUT/.running.$PHASE" ]; then
    BEFORE="$(cat "$OUT/.seconds.$PHASE" 2>/dev/null || echo 0)"
  fi
  touch "$OUT/.running.$PHASE"
  echo "== $PHASE" >&2
  "$@"
  note_seconds
  rm -f "$OUT/.running.$PHASE"
  PHASE=
}
note_seconds() {
  if [ -n "$PHASE" ] && [ -z "$DONE" ]; then
    echo $((BEFORE + SECONDS - BEGAN)) >"$OUT/.seconds.$PHASE"
  fi
}
trap note_seconds EXIT
command_of() { "$PYTHON" -m "ssl_diffusion.$1" "${@:2}"; }
unless() { # unless FILE COMMAND...
  [ -e "$1" ] || "${@:2}"
}
timings() {
  local name value line=""
  for name in install prepare train sample stitch; do
    value="$(cat "$OUT/.seconds.$name")"
    line="$line\"$name\": $value, "
  done
  printf '{%s}\n' "${line%, }" >"$OUT/timings.json"
}

phase install "$ROOT/.venv/installed${EXTRAS:-}" make_environment
phase prepare "$OUT/records/dataset_info.json" command_of prepare --config="$CONFIG" --output="$OUT/records"
phase train "$OUT/train/summary.json" \
  command_of train --config="$CONFIG" --workdir="$OUT/train" --config.data.dir="$OUT/records" ${TRAIN[@]+"${TRAIN[@]}"}
for result in "$OUT/samples/samples.json" "$OUT/stitched.json"; do # made of an older model: to be made again
  [ "$result" -nt "$OUT/train/model/model.json" ] || rm -f "$result"
done
phase sample "$OUT/samples/samples.json" unless "$OUT/samples/samples.json" \
  command_of sample --model="$OUT/train/model" --records="$OUT/records" --output="$OUT/samples"
phase stitch "$OUT/stitched.json" unless "$OUT/stitched.json" \
  command_of generate --model="$OUT/train/model" --reference=demo:cmu_small_region.svs --region="$REGION" \
  --output="$OUT/stitched.png"
timings
command_of evaluate --model="$OUT/train/model" --records="$OUT/records" --train="$OUT/train" \
  --samples="$OUT/samples" --stitched="$OUT/stitched.png" --timings="$OUT/timings.json" --output="$OUT"
echo "report: $OUT/report.html"
