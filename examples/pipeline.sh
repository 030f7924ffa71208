#!/bin/sh
# Pipes: examples and codes flow from verb to verb as tar streams; nothing in between touches the disk. A stream says at
# its end how many examples it had, so that the reader fails if the writer did.
# Usage: sh pipeline.sh [FOLDER]   (FEATURES=pixels: measured without a classifier, which is trained once)
set -eu
out=${1:-pipeline}
run=$out/vae

gencli train vae digits -o "$run" --binarize dynamic --steps "${STEPS:-500}" --resume -q

# Samples into the metrics.
gencli sample "$run" -n 500 --seed 1 -q |
    gencli evaluate "$run" digits:test --samples - --limit 500 ${FEATURES:+--features "$FEATURES"} --json -q > "$out/evaluation.json"

# Data -> codes -> data.
gencli encode "$run" digits:test --limit 16 -q | gencli sample "$run" --latents - -q -o "$out/reconstructions.png"

# Samples -> codes -> a path through them.
gencli sample "$run" -n 3 --seed 5 -q | gencli encode "$run" - -q |
    gencli interpolate "$run" --latents - --frames 8 -q -o "$out/path.gif"

# The stream is a plain tar: other tools read it as well.
mkdir -p "$out/pictures"
gencli sample "$run" -n 8 -q | tar -x -C "$out/pictures"

ls "$out" "$out/pictures"
