#!/usr/bin/env bash
# One process a node, all its GPUs; SLURM says who the others are.
#   sbatch --nodes 4 slurm.sh ftjax train --config ... --workdir /shared/run
#SBATCH --job-name ftjax
#SBATCH --ntasks-per-node 1
#SBATCH --gpus-per-node 8
#SBATCH --exclusive
#SBATCH --signal TERM@120
#SBATCH --requeue
set -euo pipefail
# What devices send goes on while they compute; flags that are set already come last, and count.
export XLA_FLAGS="--xla_gpu_enable_latency_hiding_scheduler=true \
    --xla_gpu_enable_pipelined_all_gather=true \
    --xla_gpu_enable_pipelined_reduce_scatter=true \
    --xla_gpu_enable_while_loop_double_buffering=true ${XLA_FLAGS:-}"
# Two minutes before its time is over the run saves and exits with 143; requeued, it goes on.
srun --kill-on-bad-exit=1 "$@" && exit
code=$?
[[ $code != 143 ]] || scontrol requeue "$SLURM_JOB_ID"
exit $code
