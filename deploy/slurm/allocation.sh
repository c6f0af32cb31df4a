#!/bin/bash
# Scheduler, supervised workers and the pipeline inside one allocation, TLS between the nodes.
#   sbatch --nodes=4 allocation.sh PIPELINE.toml
#SBATCH --job-name=chemscale
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --time=02:00:00
#SBATCH --signal=B:TERM@120
set -uo pipefail
pipeline=${1:?usage: sbatch allocation.sh PIPELINE.toml}

# EDIT: make `chemscale` available here, and name the network between the nodes
interface=${CHEMSCALE_INTERFACE:-ib0}

dir=$(mktemp -d "${CHEMSCALE_SHARED:-$HOME}/.chemscale-XXXXXX") && chmod 700 "$dir"
trap 'kill $(jobs -p) 2>/dev/null; wait; rm -rf "$dir"' EXIT
chemscale cluster credentials "$dir/tls"
chemscale cluster scheduler --tls "$dir/tls" --scheduler-file "$dir/scheduler.json" --interface "$interface" &
srun --overlap --mem=0 chemscale cluster worker --tls "$dir/tls" --scheduler-file "$dir/scheduler.json" \
  --interface "$interface" --workers "${SLURM_CPUS_PER_TASK:-1}" --memory "${CHEMSCALE_MEMORY:-3 GiB}" \
  --lifetime "${CHEMSCALE_LIFETIME:-100minutes}" --lifetime-stagger 5minutes &
until [ -s "$dir/scheduler.json" ]; do sleep 1; done
cat > "$dir/cluster.toml" <<TOML
[cluster]
kind = "address"
scheduler_file = "$dir/scheduler.json"
tls = "$dir/tls"
TOML
chemscale run "$pipeline" --cluster "$dir/cluster.toml" &
child=$!
trap 'kill -TERM $child' TERM
wait $child; status=$?
[ $status -gt 128 ] && { wait $child; status=$?; }
exit $status
