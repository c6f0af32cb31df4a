#!/bin/bash
# The job that drives a pipeline; the work is done in jobs it submits (cpu.toml).
#SBATCH --job-name=chemscale
#SBATCH --cpus-per-task=1
#SBATCH --mem=4G
#SBATCH --time=04:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
set -uo pipefail
pipeline=${1:?usage: sbatch pipeline.sh PIPELINE.toml [CLUSTER.toml]}
cluster=${2:-cpu.toml}

# EDIT: make `chemscale` available here, for example: source ~/envs/chemscale/bin/activate

chemscale run "$pipeline" --cluster "$cluster" &
child=$!
# near the walltime: stop in good order and go back into the queue; finished work is kept
trap 'kill -TERM $child; wait $child; [ -n "${SLURM_JOB_ID:-}" ] && scontrol requeue "$SLURM_JOB_ID"; exit 143' TERM
wait $child
