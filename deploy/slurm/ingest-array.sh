#!/bin/bash
# Each element of the array writes its share of the shards; whoever finishes last closes the store.
#   sbatch --array=1-16 ingest-array.sh apogee --spectra /data/dr17 --out survey.zarr
#SBATCH --job-name=chemscale-ingest
#SBATCH --cpus-per-task=1
#SBATCH --mem=4G
#SBATCH --time=02:00:00
#SBATCH --signal=B:TERM@60
set -uo pipefail

# EDIT: make `chemscale` available here

out=""
for ((i = 1; i < $#; i++)); do [ "${!i}" = --out ] && { j=$((i + 1)); out=${!j}; }; done
: "${out:?no --out among the arguments}"
part=${SLURM_ARRAY_TASK_ID:-1} parts=${SLURM_ARRAY_TASK_COUNT:-1}

# a partition that was cut off carries on where it stopped when it is submitted again
chemscale ingest "$@" --workers 0 --partition "$part/$parts" || exit $?
# closing says which partitions are missing (status 3) until the last one is there
chemscale finalise "$out" || { [ $? -eq 3 ] && echo "partition $part of $parts is done; others are to come"; }
