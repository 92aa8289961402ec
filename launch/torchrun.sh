#!/usr/bin/env bash
# RECIPE=recipes/digits.yaml PROCS=2 launch/torchrun.sh [key=value ...] [--out DIR]
# PROCS processes of one node; RESTARTS: how often a failed rank may be restarted
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(((THREADS = $(getconf _NPROCESSORS_ONLN) / ${PROCS:-1}) > 0 ? THREADS : 1))}"
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE="${TORCH_DISABLE_SHARE_RDZV_TCP_STORE:-1}"
exec "${PYTHON:-python}" \
    -m torch.distributed.run \
    --standalone \
    --nproc-per-node "${PROCS:?processes of this node, such as 2}" \
    --max-restarts "${RESTARTS:-0}" \
    --signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 \
    --shutdown-timeout 300 \
    -m distmem.worker \
    -- "${RECIPE:?a recipe, such as recipes/digits.yaml}" "$@"
