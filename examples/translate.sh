#!/bin/sh
# A translator in a pipe: a model of pairs of lines; then a line goes in and its translation comes out, one by one.
# Usage: sh translate.sh PAIRS [RUN] < lines   (PAIRS is a folder with source.txt and target.txt, line n made from line n)
set -eu
pairs=$1
run=${2:-translator}

# With --resume a second start has nothing left to train.
gencli train seq2seq "$pairs" -o "$run" --unit "${UNIT:-words}" --steps "${STEPS:-4000}" --resume

gencli sample "$run" --given - -f txt
