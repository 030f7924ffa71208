#!/bin/sh
# A folder of one's own pictures: sub-folders are classes, a tenth is held out for the test.
# Usage: sh own-pictures.sh [PICTURES [FOLDER]]   (without PICTURES it draws some to try with)
set -eu
pictures=${1:-}
out=${2:-own-pictures}

if [ -z "$pictures" ]; then
    pictures=$out/pictures
    mkdir -p "$pictures/disc" "$pictures/ring"
    for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        for shape in disc ring; do
            awk -v n="$n" -v shape="$shape" 'BEGIN {
                size = 24; x = 8 + n % 5 * 2; y = 8 + n % 4 * 2; radius = 4 + n % 3
                print "P2", size, size, 255
                for (i = 0; i < size; i++) for (j = 0; j < size; j++) {
                    r = sqrt((i - y) ^ 2 + (j - x) ^ 2)
                    print (r < radius && (shape == "disc" || r > radius - 2)) ? 255 : 0
                }
            }' > "$pictures/$shape/$n.pgm"
        done
    done
fi

# Any size and mode goes in: the short side becomes 24 pixels, the middle is cut out, colours become grey.
gencli train vae "$pictures" -o "$out/vae" --size 24 --channels 1 --steps "${STEPS:-1000}" --batch-size 32 --resume
gencli sample "$out/vae" -n 36 -o "$out/samples.png"
gencli evaluate "$out/vae" "$pictures:test" --draw 0
echo "Look at $out/samples.png"
