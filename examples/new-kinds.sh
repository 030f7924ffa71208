#!/bin/sh
# Four kinds of data beside pictures, text and sound: drawings, series, films and a table, each made here, so that nothing
# has to be fetched, modelled by a family that fits it, and written in the formats that other programs open.
# Usage: sh new-kinds.sh [FOLDER]
set -eu
out=${1:-new-kinds}
steps=${STEPS:-300}
mkdir -p "$out"

# Drawings, as QuickDraw has them: squares and triangles of many sizes, a drawing a line.
awk 'BEGIN { srand(1); for (i = 0; i < 400; i++) { a = int(40 + 60 * rand()); b = int(40 + 60 * rand())
    if (i % 2) printf "{\"word\": \"triangle\", \"drawing\": [[[0, %d, %d, 0], [%d, %d, 0, %d]]]}\n", a, a / 2, b, b, b
    else printf "{\"word\": \"square\", \"drawing\": [[[0, %d, %d, 0, 0], [0, 0, %d, %d, 0]]]}\n", a, a, b, b } }' \
    > "$out/drawings.ndjson"
gencli train gmm "$out/drawings.ndjson" -o "$out/drawings" --components 4 -q
gencli sample "$out/drawings" -n 12 -q -o "$out/drawings.svg"       # for a browser

# A series with a time column: the rhythm of days, and noise; its last tenth is held out. Windows of a day are drawn.
awk 'BEGIN { srand(2); print "time,load,heat"; for (i = 0; i < 672; i++) { t = 6.2832 * i / 24
    printf "2024-01-%02d %02d:00:00,%.3f,%.3f\n", 1 + i / 24, i % 24, 9 + 3 * sin(t) + rand(), 20 + 4 * cos(t) + rand() } }' \
    > "$out/series.csv"
gencli train gaussian "$out/series.csv" -o "$out/series" --kind series --window 24 -q
gencli sample "$out/series" -n 9 -q -o "$out/days.svg"              # .csv for a spreadsheet
gencli evaluate "$out/series" "$out/series.csv:test" --draw 60 -q   # errors are those of blocks: windows overlap

# Films: two digits that move, and how they go on after their first frames.
gencli train unet moving-digits -o "$out/films" --size 16 --frames 6 --condition past=3 --limit 400 --width 8 \
    --depth 2 --steps "${STEPS:-200}" -q
gencli sample "$out/films" --given moving-digits:test -n 9 -q -o "$out/next.gif"

# A table of typed columns, some cells empty: numbers, words and dates come back as they are written.
awk 'BEGIN { srand(3); print "day,island,mass,banded"; for (i = 0; i < 400; i++) { k = int(3 * rand())
    printf "2023-%02d-%02d,%s,%s,%s\n", 1 + int(12 * rand()), 1 + int(28 * rand()), substr("BirdHillReef", 4 * k + 1, 4),
        rand() < 0.05 ? "" : int(3000 + 900 * k + 400 * rand()), rand() < 0.3 + 0.2 * k ? "yes" : "no" } }' \
    > "$out/table.csv"
gencli train gmm "$out/table.csv" -o "$out/table" --components 6 -q
gencli sample "$out/table" -n 200 -q -o "$out/rows.csv"

echo "Look at $out: drawings.svg, days.svg, next.gif, rows.csv"
