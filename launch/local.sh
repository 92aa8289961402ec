#!/usr/bin/env bash
# RECIPE=recipes/digits.yaml launch/local.sh [key=value ...] [--out DIR]
# one process
exec "${PYTHON:-python}" \
    -m distmem.worker \
    "${RECIPE:?a recipe, such as recipes/digits.yaml}" "$@"
