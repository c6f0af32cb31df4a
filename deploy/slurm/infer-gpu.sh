#!/bin/bash
# Latents of a whole survey on the GPUs of one node.
#   sbatch --gres=gpu:4 infer-gpu.sh survey.zarr run
#SBATCH --job-name=chemscale-infer
#SBATCH --partition=gpu
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --mem=32G
#SBATCH --time=01:00:00
#SBATCH --signal=B:TERM@120
set -uo pipefail
store=${1:?usage: sbatch infer-gpu.sh STORE RUN}
run=${2:?usage: sbatch infer-gpu.sh STORE RUN}

# EDIT: make `chemscale` available here (with its gpu extra)

chemscale vae infer "$store" --run "$run" --cluster "${CHEMSCALE_CLUSTER:-gpu}" &
child=$!
trap 'kill -TERM $child' TERM # finished shards are kept; submit again to carry on
wait $child
