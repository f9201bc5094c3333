#!/bin/bash
# Starts Ray on all nodes of a Slurm job, runs one metricunet command on it, and ends with it.
#
#   sbatch --nodes=4 docs/clusters/slurm.sh predict /data/scans -o /data/predictions
#
# The folders, and the environment with metricunet[ray], lie on storage that all nodes see by the same paths.
#SBATCH --job-name=metricunet
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=24:00:00
# Two minutes before the time is up the command is told as by Ctrl-C: it lets go of its claims, and the same job,
# submitted again, goes on where it stopped.
#SBATCH --signal=B:INT@120
set -euo pipefail

unset OMP_NUM_THREADS # Slurm may set it for the whole node; export it anew for workers of more than one core
export RAY_USAGE_STATS_ENABLED=0
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN # only who has this job's token is let in
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
port=$((20000 + SLURM_JOB_ID % 20000)) # two jobs may share a node
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
address="$(python -c 'import ray; print(ray.util.get_node_ip_address())'):$port" # this script runs on the first node
cores=${SLURM_CPUS_ON_NODE:-$(nproc)}

wait_for() { # until so many nodes have joined
  until python - "$address" "$1" <<'PYTHON' 2> /dev/null; do sleep 5; done
import sys

import ray

ray.init(address=sys.argv[1], log_to_driver=False)
sys.exit(sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[2]))
PYTHON
}

srun --overlap --nodes=1 --ntasks=1 -w "$head" \
  ray start --head --port="$port" --num-cpus="$cores" --include-dashboard=false --disable-usage-stats --block &
wait_for 1 # a node that comes before the head gives up
for node in "${nodes[@]:1}"; do
  srun --overlap --nodes=1 --ntasks=1 -w "$node" \
    ray start --address="$address" --num-cpus="$cores" --disable-usage-stats --block &
done
wait_for "${#nodes[@]}"

metricunet "$@" --engine "ray://$address" &
command=$!
trap 'kill -INT "$command"' INT TERM
status=0
wait "$command" || status=$?
if kill -0 "$command" 2> /dev/null; then # the wait ended with the signal, and the command has not yet
  status=0
  wait "$command" || status=$?
fi
kill $(jobs -p) 2> /dev/null || true
exit "$status"
