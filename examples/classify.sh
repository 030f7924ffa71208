#!/bin/sh
# Sort lines of text into two classes by naive Bayes, which learns from a file of lines of each, in seconds.
# Usage: sh classify.sh FILE FILE < LINES   prints each line after the file whose lines it is like, and how surely.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

grep -h . "$1" "$2" > "$work/lines.txt"
awk '/./ { print FILENAME == ARGV[1] ? "1st" : "2nd" }' "$1" "$2" > "$work/classes.txt"
gencli train naive-bayes "$work/lines.txt" --lines --labels "$work/classes.txt" --unit words -o "$work/run" -q
gencli evaluate "$work/run" "$work/lines.txt:test" --labels "$work/classes.txt" --draw 0 -q | grep '^accuracy' >&2

grep . > "$work/new.txt"
gencli encode "$work/run" "$work/new.txt" --set code=probabilities -f csv -o - -q | sed 1d |
    paste - "$work/new.txt" |
    awk -v first="$1" -v second="$2" -F '\t' '{
        split($1, p, ",")
        if (p[1] > p[2]) printf "%s\t%.3f\t%s\n", first, p[1], $2
        else printf "%s\t%.3f\t%s\n", second, p[2], $2
    }'
