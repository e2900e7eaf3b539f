#!/usr/bin/env bash
# Train on a Slurm cluster, one task for each GPU:
#   PARTITION=gpu TASKS=16 GPUS_PER_NODE=8 tools/slurm_train.sh CONFIG [options of tools/train.py]
# SRUN_ARGS are handed to srun.
set -euo pipefail
config=$1
shift
tasks=${TASKS:-8}
per_node=${GPUS_PER_NODE:-8}
[ "$tasks" -lt "$per_node" ] && per_node=$tasks
# shellcheck disable=SC2086
exec srun ${PARTITION:+--partition "$PARTITION"} --job-name "$(basename "$config" .py)" \
    --ntasks "$tasks" --ntasks-per-node "$per_node" --gres "gpu:$per_node" \
    --cpus-per-task "${CPUS_PER_TASK:-8}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    python -u "$(dirname "$0")/train.py" "$config" --launcher slurm "$@"
