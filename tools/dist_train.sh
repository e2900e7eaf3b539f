#!/usr/bin/env bash
# Train on several GPUs of this machine, or of several machines:
#   tools/dist_train.sh CONFIG GPUS [options of tools/train.py]
#   NODES=2 NODE_RANK=0 MASTER_ADDR=host0 tools/dist_train.sh CONFIG GPUS   (and NODE_RANK=1 on the other)
set -euo pipefail
config=$1
gpus=$2
shift 2
exec torchrun \
    --nnodes "${NODES:-1}" --node_rank "${NODE_RANK:-0}" --nproc_per_node "$gpus" \
    --master_addr "${MASTER_ADDR:-127.0.0.1}" --master_port "${MASTER_PORT:-29500}" \
    "$(dirname "$0")/train.py" "$config" --launcher pytorch "$@"
