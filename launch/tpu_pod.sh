#!/usr/bin/env bash
# Trains on a Cloud TPU slice of any size, got as a queued resource, and gets another when it is taken away.
#
#   bash launch/tpu_pod.sh --config=configs/bracs.py --workdir=/mnt/runs/DIR --name=bracs --accelerator-type=v5p-128
#     --runtime-version=v2-alpha-tpuv5 --zone=us-east5-a --project=PROJECT [--spot] [--create=OPTION ...]
#     [--setup=COMMAND] [--attempts=100] [--dry-run] [-- --config.field=value ...]
#
# It stays until training has finished, so run it where a lost connection does not end it (tmux on a small VM). --setup
# runs on every new worker and mounts the shared folder that --workdir is in. --create takes any other option of `gcloud
# compute tpus queued-resources create`. The workers get what is committed. However it ends, it deletes the slice.
set -euo pipefail
# shellcheck source=launch/launcher.sh
. "$(dirname "${BASH_SOURCE[0]}")/launcher.sh"

ATTEMPTS=100 SPOT='' SETUP='' NAME='' ACCELERATOR_TYPE='' RUNTIME_VERSION='' ZONE='' PROJECT=''
read_options "name accelerator-type runtime-version zone project spot? setup attempts create*" "$@"
need config workdir name accelerator-type runtime-version zone project
need_numbers attempts
need_shared_paths
cd "$ROOT"
need_config
run cd "$ROOT"

WHERE=(--zone="$ZONE" --project="$PROJECT")
SUMMARY="$WORKDIR/summary.json"
ARCHIVE="dist/$NAME.tar.gz"
CREATED=''

queued_resource() { # VERB OPTION...
  run gcloud compute tpus queued-resources "$1" "$NAME" "${WHERE[@]}" "${@:2}"
}

workers() { # all|0 COMMAND
  run gcloud compute tpus tpu-vm ssh "$NAME" "${WHERE[@]}" --quiet \
    --ssh-flag="-o ConnectTimeout=30 -o ServerAliveInterval=30" --worker="$1" --command="$2"
}

# Ends this script when a worker ended with 2: its input is unusable, and no other attempt would change that.
unless_refused() {
  [ "$1" -ne 2 ] || fail "a worker ended with code 2; what it printed above says what to change"
  return "$1"
}

# On the workers' own disk the run would go when they go.
CHECK="if ! mkdir -p $(quote "$WORKDIR") || [ \"\$(stat -c %d $(quote "$WORKDIR"))\" = \"\$(stat -c %d /)\" ]; then \
echo 'error: the workdir is no folder of a shared disk; mount one there with --setup=COMMAND' >&2; exit 2; fi"
# The workers' own Python may be older than 3.11, so uv brings one.
BUILD="$(jax_build tpu)"
INSTALL="tar -xzf ssl_diffusion.tar.gz && cd ssl_diffusion \
&& PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv \
&& { [ -e .venv ] || python3 -m uv venv --quiet --python 3.12 .venv; } \
&& python3 -m uv pip install --quiet --python .venv/bin/python --editable . $(quote "$BUILD")"
# gcloud connects again when a connection breaks, and starts the command a second time: that one waits for the first.
training_command .venv/bin/python --multihost
ONCE="[ -e $(quote "$SUMMARY") ] || exec $(quote "${COMMAND[@]}")"
START="cd ssl_diffusion && flock .train.lock sh -c $(quote "$ONCE")"

wait_until_active() {
  local state failures=0
  if [ -n "$DRY_RUN" ]; then
    say "every 30 seconds until it says ACTIVE; at FAILED, SUSPENDING or SUSPENDED, the next attempt:"
    queued_resource describe --format='value(state.state)'
    return
  fi
  while [ "$failures" -lt 10 ]; do
    state="$(queued_resource describe --format='value(state.state)')" || state=''
    case "$state" in
      ACTIVE) return ;;
      FAILED | SUSPENDING | SUSPENDED) say "$NAME is $state" && return 1 ;;
      '') failures=$((failures + 1)) ;;
      *) failures=0 ;;
    esac
    sleep 30
  done
  return 1
}

# From an empty zone to the end of training on one slice; 0 when training has finished.
attempt() {
  local options=(--node-id="$NAME" --accelerator-type="$ACCELERATOR_TYPE" --runtime-version="$RUNTIME_VERSION")
  CREATED=1
  if ! queued_resource create "${options[@]}" ${SPOT:+--spot} ${EXTRA[@]+"${EXTRA[@]}"}; then
    [ "$number" -gt 1 ] || fail "gcloud does not create $NAME; what it printed above says why"
    return 1
  fi
  wait_until_active || return
  run gcloud compute tpus tpu-vm scp "$ARCHIVE" "$NAME:ssl_diffusion.tar.gz" "${WHERE[@]}" --quiet --worker=all || return
  [ -z "$SETUP" ] || workers all "$SETUP" || return
  workers all "$CHECK" || unless_refused $? || return
  workers all "$INSTALL" || return
  workers all "$START" || unless_refused $? || say "training was interrupted (code $?)"
  workers 0 "test -e $(quote "$SUMMARY")" # after a preemption, training ends with 0 too
}

release() {
  local trial
  CREATED=''
  for ((trial = 0; trial < 10; trial++)); do
    queued_resource delete --force --quiet && return
    case "$(queued_resource describe 2>&1)" in *NOT_FOUND*) return ;; esac
    sleep 30
  done
  echo "error: the queued resource $NAME could not be deleted and goes on costing money; delete it by hand" >&2
}

if [ -z "$DRY_RUN" ]; then
  changed="$(git status --porcelain -- ssl_diffusion configs requirements.txt pyproject.toml)" ||
    fail "$ROOT is no git checkout; clone the repository, the workers get what is committed"
  [ -z "$changed" ] || fail "not committed: $(head -1 <<<"$changed"); commit it, the workers get what is committed"
  if queued_resource describe >/dev/null 2>&1; then
    fail "a queued resource $NAME exists already; choose another --name, or delete it if nothing uses it"
  fi
fi
run mkdir -p dist
run git archive --format=tar.gz --prefix=ssl_diffusion/ --output="$ARCHIVE" HEAD # once: all attempts run one version
trap '[ -z "$CREATED" ] || release' EXIT
for ((number = 1; number <= ATTEMPTS; number++)); do
  say "attempt $number of at most $ATTEMPTS"
  if attempt; then
    say "$SUMMARY is there: training has finished"
    exit 0
  fi
  release
  sleep 30
done
echo "error: training has not finished after $ATTEMPTS attempts; start it again to go on" >&2
exit 1
