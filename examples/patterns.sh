#!/bin/sh
# The memory of a pattern: series in which an even number is followed by its half, an odd one by three times itself and one.
# A small transformer learns the rule itself: it goes on from numbers that no line of training holds.
# A number is six digits, the last one first, so that carries go the way the text is written: 27 -> 82 -> 41 is
# "720000 280000 140000".
# Usage: sh patterns.sh [FOLDER]   (STARTS="17 4112": the numbers to go on from, of the held-out ones)
set -eu
out=${1:-patterns}
mkdir -p "$out"

# Every start up to 29999, and what follows it. Numbers that are three more than a multiple of 7 are held out, which no
# digit tells: series that come to one of them are not trained on.
rule='function next_of(n) { return n % 2 ? 3 * n + 1 : n / 2 }
      function held(n) { return n % 7 == 3 }
      function digits(n,  i, text) { for (i = 0; i < 6; i++) { text = text n % 10; n = int(n / 10) } return text }
      function series(n,  i, text) { text = digits(n)
          for (i = 0; i < 5; i++) { n = next_of(n); text = text " " digits(n) } return text }'
awk "$rule"'BEGIN { for (start = 1; start < 30000; start++) { seen = held(n = start)
    for (i = 0; i < 5; i++) { n = next_of(n); seen = seen || held(n) }
    if (!seen) print series(start) } }' > "$out/series.txt"

gencli train transformer "$out/series.txt" -o "$out/run" --lines --unit characters --dropout 0 --layers 3 --width 64 \
    --heads 4 --window 48 --batch-size 64 --steps "${STEPS:-1500}" --resume

# Go on from numbers that were held out, with the likeliest digits, and count the series that are right.
for start in ${STARTS:-3 10 17 24 969 1235 2488 4112 9992 29991}; do
    prompt=$(awk "$rule"'BEGIN { printf "%s ", digits('"$start"') }')
    gencli sample "$out/run" -n 1 --prompt "$prompt" --set temperature=0.01 -q -f txt |
        awk "$rule"'{ right = series('"$start"'); print ($0 == right ? "right" : "wrong"), $0 }'
done > "$out/checked.txt"
cat "$out/checked.txt"
echo "$(grep -c ^right "$out/checked.txt" || true) of $(wc -l < "$out/checked.txt") series are right"
