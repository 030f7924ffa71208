#!/bin/sh
# Codes that are searched for, painted on, moved and added: a model of digits, for want of faces.
set -eu

gencli train pca digits --components 24 -o runs/codes -q

# The code whose picture is nearest, and how near that is.
gencli encode runs/codes digits:test --limit 20 --project -o codes.npz

# Erase the lower half of a digit: the way to what the model makes of it.
{ printf 'P5 28 28 255\n'; head -c 784 /dev/zero; } > strokes.pgm
{ printf 'P5 28 28 255\n'; head -c 392 /dev/zero; head -c 392 /dev/zero | tr '\0' '\377'; } > mask.pgm
gencli sample runs/codes --edit 'digits:test#3' --strokes strokes.pgm --mask mask.pgm --film 10 -o edited.png

# Two digits, a row each, on their way to being an 8; three axes of the code; a sum of codes.
gencli interpolate runs/codes 'digits:test#0' 'digits:test#5' --attribute 8=3 -o eights.png
gencli interpolate runs/codes --traverse 0,1,2 --range -2,2 -o axes.png
gencli interpolate runs/codes --arithmetic 'digits:test#0 - digits:test#1 + digits:test#2' -o sum.png

# Are samples copies? Each of those nearest to training examples above these.
gencli evaluate runs/codes digits:test --metrics memorisation --draw 64 --neighbours neighbours.png
