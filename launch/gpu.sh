#!/usr/bin/env bash
# Trains on the GPUs of this machine.
#
#   bash launch/gpu.sh --config=configs/bracs.py --workdir=DIR [--dry-run] [-- --config.field=value ...]
#
# Makes .venv if need be, with the CUDA build of JAX that requirements.txt names. Every GPU is used; CUDA_VISIBLE_DEVICES=0
# picks one. SIGTERM saves a checkpoint; the same command goes on from the last one.
set -euo pipefail
# shellcheck source=launch/launcher.sh
. "$(dirname "${BASH_SOURCE[0]}")/launcher.sh"

read_options "" "$@"
need config workdir
case "$WORKDIR" in
  /*) ;;
  *) WORKDIR="$PWD/$WORKDIR" ;;
esac
cd "$ROOT"
need_config
run cd "$ROOT"
install_here cuda
training_command .venv/bin/python
[ -n "$DRY_RUN" ] || exec "${COMMAND[@]}" # in place of this shell: a signal meant for training reaches it
run "${COMMAND[@]}"
