#!/usr/bin/env bash
# Makes .venv if need be and runs the tests: bash launch/test.sh [--all] [pytest arguments]
# --all also runs the tests that take minutes; libtpu and Apache Beam are installed for some of them.
set -euo pipefail
export EXTRAS="[test]"
if [ "${1:-}" = --all ]; then
  EXTRAS="[test,plan,beam]"
fi
# shellcheck source=launch/environment.sh
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
make_environment
cd "$ROOT"
if [ "${1:-}" = --all ]; then
  set -- -m "" "${@:2}"
fi
# Two processes, each with the tests of whole files: more would build more of what tests share.
JAX_PLATFORMS=cpu exec "$PYTHON" -m pytest -q -n 2 --dist loadfile "$@"
