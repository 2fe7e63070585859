#!/usr/bin/env bash
# A command on every host of a TPU slice, which is asked for and waited for.
#   bash tpu.sh NAME v5litepod-64 us-west4-a 'ftjax train --config ... --workdir gs://bucket/run'
set -euo pipefail
name=$1 kind=$2 zone=$3 command=$4
runtime=${RUNTIME:-v2-alpha-tpuv5-lite}
gcloud compute tpus queued-resources create "$name" --node-id "$name" --zone "$zone" \
    --accelerator-type "$kind" --runtime-version "$runtime" ${SPOT:+--spot}
until [[ $(gcloud compute tpus queued-resources describe "$name" --zone "$zone" \
    --format 'value(state.state)') == ACTIVE ]]; do
    sleep 30
done
here() { gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker all --command "$1"; }
gcloud compute tpus tpu-vm scp --recurse --zone "$zone" --worker all \
    "$(dirname "$0")/../.." "$name:ftjax"
here "pip install --quiet './ftjax[tpu]'"
until here "cd ftjax && PATH=\$HOME/.local/bin:\$PATH $command"; do
    code=$?
    [[ $code == 143 ]] || exit $code  # 143: stopped by SIGTERM, after saving
done
