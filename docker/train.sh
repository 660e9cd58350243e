#!/bin/sh
# The way from data to a served bundle: prepare, train, export and activate. A service on the same store switches by itself.
#
#   DATA     what `diptych prepare` reads (default: the example in the image); PREPARE its further options
#   RECIPE   of `diptych train` (default: default); TRAIN its further options, EXPORT those of `diptych export`
#   RUN      a name; the same one goes on where a run was interrupted (default: the day)
#   WORK, STORE  the folders of runs and bundles (default: /work and /store, the image's volumes)
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
