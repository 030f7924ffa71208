#!/bin/sh
# Train, sample, encode, interpolate, evaluate and export on the data that is included: two or three minutes on two cores.
# Usage: sh quickstart.sh [FOLDER]   (STEPS=100 for a shorter training)
set -eu
out=${1:-quickstart}
steps=${STEPS:-800}

# Handwritten digits. With --resume a second start has nothing left to do.
gencli train vae digits -o "$out/vae" --binarize dynamic --steps "$steps" --seed 0 --resume
gencli sample "$out/vae" -n 64 --seed 1 -o "$out/samples.png"
gencli encode "$out/vae" digits:test -o "$out/codes.npz"
gencli encode "$out/vae" digits:test --limit 64 | gencli sample "$out/vae" --latents - -o "$out/reconstructions.png"
gencli interpolate "$out/vae" digits:test#0 digits:test#1 --frames 16 -o "$out/path.png"
gencli interpolate "$out/vae" digits:test#0 digits:test#1 --frames 16 -o "$out/path.gif"
gencli evaluate "$out/vae" digits:test --limit 500 --draw 500
gencli export "$out/vae" -o "$out/vae.onnx"

# A few lines of Shakespeare, or what a minute of training makes of him.
gencli train rnn shakespeare -o "$out/rnn" --width 256 --window 64 --steps "$steps" --seed 0 --resume
gencli sample "$out/rnn" --prompt 'ROMEO:' -n 2 --set length=400 --set temperature=0.7 -o "$out/text.txt"

echo "Look at $out/samples.png, $out/reconstructions.png, $out/path.gif and $out/text.txt"
