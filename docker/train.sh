#!/bin/sh
# Prepare, train, export and activate. A service on the same store then switches to the new bundle.
#
#   DATA     input of `diptych prepare` (default: the example in the image); PREPARE: its other options
#   RECIPE   of `diptych train` (default: default); TRAIN: its other options; EXPORT: options of `diptych export`
#   RUN      name of the run; use the same name to resume it (default: today's date)
#   WORK, STORE  folders of runs and bundles (default: /work and /store, the image's volumes)
set -eu
run="${WORK:-/work}/${RUN:-$(date -u +%Y-%m-%d)}"
mkdir -p "$run"
if [ ! -f "$run/dataset/dataset.json" ]; then
    # shellcheck disable=SC2086  # options are words
    diptych prepare "${DATA:-/data}" --out "$run/dataset" ${PREPARE:-}
fi
# shellcheck disable=SC2086
diptych train --dataset "$run/dataset" --out "$run/checkpoint" --recipe "${RECIPE:-default}" ${TRAIN:-}
# shellcheck disable=SC2086
exec diptych export "$run/checkpoint" --store "${STORE:-/store}" --activate ${EXPORT:-}
