# shellcheck shell=bash disable=SC2034
# Sourced by gpu.sh, slurm.sh, tpu_pod.sh and gke.sh: their options, the command that trains, and the choice between
# running a command and printing it. It must run under bash 3.2, which macOS has.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
DRY_RUN='' CONFIG='' WORKDIR=''
EXTRA=() TRAIN=() COMMAND=()

fail() {
  echo "error: $*" >&2
  exit 2
}

# read_options "WORDS" "$@": a word is an option of the script: `name` takes a value, `name?` none, `name*` takes one and
# may be repeated. --a-name=VALUE is left in A_NAME, a repeated one in the list EXTRA, what follows -- in the list TRAIN.
read_options() {
  local words=" config workdir dry-run? $1 " argument name variable
  shift
  while [ $# -gt 0 ]; do
    argument="$1"
    shift
    if [ "$argument" = -- ]; then
      TRAIN=("$@")
      break
    fi
    name="${argument%%=*}"
    name="${name#--}"
    variable="$(printf %s "$name" | tr a-z- A-Z_)"
    case "$argument" in
      --[a-z]*=?*)
        if [[ "$words" == *" $name "* ]]; then
          printf -v "$variable" %s "${argument#*=}"
          continue
        elif [[ "$words" == *" $name* "* ]]; then
          EXTRA+=("${argument#*=}")
          continue
        fi
        ;;
      --[a-z]*)
        if [[ "$words" == *" $name? "* ]]; then
          printf -v "$variable" 1
          continue
        elif [[ "$words" == *" $name "* || "$words" == *" $name* "* ]]; then
          fail "--$name has no value; give --$name=VALUE"
        fi
        ;;
    esac
    fail "unknown option $argument; see the head of launch/$(basename "$0"); flags of train go after --"
  done
}

# need NAME...: these options were given.
need() {
  local name variable
  for name in "$@"; do
    variable="$(printf %s "$name" | tr a-z- A-Z_)"
    [ -n "${!variable:-}" ] || fail "--$name=VALUE is missing; see the head of launch/$(basename "$0")"
  done
}

# need_numbers NAME...: these options are whole numbers from 1.
need_numbers() {
  local name variable
  for name in "$@"; do
    variable="$(printf %s "$name" | tr a-z- A-Z_)"
    [[ "${!variable}" =~ ^[1-9][0-9]*$ ]] || fail "--$name=${!variable}; expected a whole number from 1"
  done
}

# In the repository's folder, where configs/ is.
need_config() {
  need config workdir
  [ -f "${CONFIG%%:*}" ] || fail "no such config: ${CONFIG%%:*}; configs/ holds the shipped ones"
}

# For machines that have this checkout's files and one folder in common.
need_shared_paths() {
  case "$CONFIG" in /*) fail "--config=$CONFIG; expected a path in this checkout, e.g. configs/bracs.py" ;; esac
  need_shared_workdir
}
need_shared_workdir() {
  case "$WORKDIR" in
    /*) ;;
    *) fail "--workdir=$WORKDIR; expected the absolute path of a folder that every machine has mounted (NFS, Filestore, gcsfuse)" ;;
  esac
}

# training_command PYTHON [--multihost]: into COMMAND.
training_command() {
  COMMAND=("$1" -m ssl_diffusion.train --config="$CONFIG" --workdir="$WORKDIR" "${@:2}" ${TRAIN[@]+"${TRAIN[@]}"})
}

# quote WORD...: one line that a shell reads as these words.
quote() {
  local word line=''
  for word in "$@"; do
    case "$word" in
      '' | *[!A-Za-z0-9_@%+=:,./-]*) word="'$(printf %s "$word" | sed "s/'/'\\\\''/g")'" ;;
    esac
    line="$line${line:+ }$word"
  done
  printf '%s\n' "$line"
}

# run COMMAND...: runs it, or prints it under --dry-run.
run() {
  if [ -n "$DRY_RUN" ]; then quote "$@"; else "$@"; fi
}

# say WORDS: what goes on; under --dry-run, a comment between the commands.
say() {
  if [ -n "$DRY_RUN" ]; then echo "# $*"; else echo "== $*" >&2; fi
}

# jax_build tpu|cuda: the requirement that requirements.txt names for this accelerator.
jax_build() {
  local build
  build="$(sed -n "s/^#.*pip install \"\(jax\[$1[0-9]*\].*\)\"\$/\1/p" requirements.txt)"
  [ -n "$build" ] || fail "requirements.txt names no build of JAX for $1; expected a line # pip install \"jax[$1...]\""
  printf '%s\n' "$build"
}

# install_here tpu|cuda: the environment of environment.sh, with this build of JAX.
install_here() {
  local build
  build="$(jax_build "$1")"
  run bash -c '. launch/environment.sh && make_environment'
  run .venv/bin/python -m pip install --quiet --disable-pip-version-check "$build"
}
