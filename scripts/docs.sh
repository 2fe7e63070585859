#!/usr/bin/env bash
# Builds the documentation into site/. Usage: bash scripts/docs.sh [serve]
# Everything is made on this machine; nothing is fetched once the packages are installed.
set -euo pipefail
cd "$(dirname "$0")/.."
export JAX_PLATFORMS=cpu PYTHONPATH=. NO_MKDOCS_2_WARNING=1
unset PYTHONDONTWRITEBYTECODE

if [ ! -x .venv-test/bin/mkdocs ]; then
    [ -d .venv-test ] || python3 -m venv .venv-test
    .venv-test/bin/pip install --quiet --disable-pip-version-check -e ".[docs]"
fi
if [ "${1:-build}" = serve ]; then
    exec .venv-test/bin/mkdocs serve
fi
SECONDS=0
.venv-test/bin/mkdocs build --strict --clean --quiet
echo "documentation: site/index.html, in $SECONDS s"
