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
# Two minutes before its time is over the run saves and exits with 143; requeued, it goes on.
srun --kill-on-bad-exit=1 "$@" && exit
code=$?
[[ $code != 143 ]] || scontrol requeue "$SLURM_JOB_ID"
exit $code
