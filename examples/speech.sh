#!/bin/sh
# Sound through pipes: recordings in, a model of each class, samples and noise out, through sox or ffmpeg where present.
# Usage: sh speech.sh [RECORDINGS [FOLDER]]   (without RECORDINGS it takes the included spoken digits)
set -eu
data=${1:-spoken-digits}
out=${2:-speech}

gencli train wavenet "$data" -o "$out/wavenet" --conditional --rate 8000 --length 4000 --residual 32 \
    --steps "${STEPS:-2000}" --resume

# One recording as a stream that begins before it is finished. sox and ffmpeg read it as any WAV file.
draw() { gencli sample "$out/wavenet" -n 1 --label "$1" -f wav -o -; }
if command -v sox > /dev/null; then
    draw 1 | sox - -r 16000 "$out/one.flac" norm -1
elif command -v ffmpeg > /dev/null; then
    draw 1 | ffmpeg -loglevel error -y -i - -ar 16000 "$out/one.flac"
else
    draw 1 > "$out/one.wav"
fi

# Samples of all classes as a tar, measured against unseen recordings.
gencli sample "$out/wavenet" -n "${NUMBER:-40}" | tee "$out/samples.tar" |
    gencli evaluate "$out/wavenet" "$data" --samples - --reconstruct 0 --html "$out/report.html"

# From one sample to another, through the noise that they are made of.
gencli interpolate "$out/wavenet" --seeds 1,2 --frames 5 -o "$out/between.wav"
echo "Listen to $out/between.wav, look at $out/report.html"
