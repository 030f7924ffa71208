#!/bin/sh
# A gate for CI, on any machine with a shell: is the model good enough, and no worse than an earlier one?
# Exits with 0 if it is and with 5 if not, and says why; leaves result.json, report.html, summary.md and junit.xml in
# FOLDER. BASELINE is the result.json of an earlier model; where there is none yet, nothing is compared.
# Usage: sh gate.sh RUN DATA FOLDER [BASELINE]   (REQUIRE='elbo<=130 psnr>=12' TOLERANCE=2% FEATURES=pixels)
set -eu
run=$1 data=$2 out=$3 baseline=${4:-}

set --
for limit in ${REQUIRE:-elbo<=130 psnr>=12}; do
    set -- "$@" --require "$limit"
done
if [ -f "$baseline" ]; then
    set -- "$@" --baseline "$baseline" --tolerance "${TOLERANCE:-2%}"
fi

mkdir -p "$out"
gencli evaluate "$run" "$data" --limit 500 --draw 500 ${FEATURES:+--features "$FEATURES"} "$@" --json -q --html "$out/report.html" \
    --markdown "$out/summary.md" --junit "$out/junit.xml" > "$out/result.json"
