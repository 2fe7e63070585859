#!/usr/bin/env bash
# A command on every host of TPU slices of a GKE cluster, by XPK (pip install xpk).
# It starts again what exits with 127 to 255, of which 143 is a run that SIGTERM stopped.
#   SLICES=2 bash gke.sh CLUSTER v5litepod-64 'ftjax train ... --config.mesh.data=2'
set -euo pipefail
cluster=$1 kind=$2 command=$3
image=${IMAGE:?set IMAGE to one built from Dockerfile.tpu}
xpk workload create --cluster "$cluster" --workload "${NAME:-ftjax-$(date +%s)}" \
    --tpu-type "$kind" --num-slices "${SLICES:-1}" --docker-image "$image" \
    --max-restarts "${RESTARTS:-10}" --command "$command"
