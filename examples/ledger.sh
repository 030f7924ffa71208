#!/bin/sh
# Train presets, measure each by its own protocol, and append what they came to, a line each, to LEDGER.jsonl.
# Ends with 5 if a number lies outside of what its preset expects. Trainings that were interrupted are resumed.
# Usage: sh ledger.sh LEDGER.jsonl FAMILY/PRESET...   (RUNS=folder of the runs)
#        sh ledger.sh ledger.jsonl naive-bayes/binarized-mnist pca/mnist
set -eu
ledger=$1
shift
runs=${RUNS:-ledger-runs}

mkdir -p "$runs"
worst=0
for one in "$@"; do
    family=${one%%/*} preset=${one#*/}
    # What the preset says of itself: "gencli train ... -o RUN; gencli evaluate RUN ...".
    command=$(python -c '
import sys
from gencli.presets import about
said = about(*sys.argv[1:])
print(said.command if said.metric else sys.exit("preset {2} of {1} is judged by no number of evaluate".format(*sys.argv)))
' "$family" "$preset")
    train=${command%; gencli evaluate*} evaluate=${command##*; }
    RUN=$runs/$family-$preset
    # Other runs that it needs, such as NGRAM of mlp-lm, lie beside it.
    eval "$(echo "$train;" | sed -E 's| RUN| "$RUN"|; s| ([A-Z]{3,})([ ;])| "$RUN-\1"\2|g; s|;| --resume -q;|g')"
    eval "$(echo "$evaluate --ledger \"\$ledger\" -q" | sed 's| RUN| "$RUN"|')" || worst=$?
done
exit "$worst"
