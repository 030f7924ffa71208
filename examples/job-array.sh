#!/bin/sh
# A job array: every task draws its own part of the samples, and the parts together are the whole, bit for bit.
#   sbatch --array=1-8 job-array.sh runs/vae samples    under Slurm: one part for each task
#   sh job-array.sh runs/vae samples                    elsewhere: three parts, one after the other, and the proof
# Usage: sh job-array.sh RUN [FOLDER]   (NUMBER=100000 for more samples)
set -eu
run=$1
out=${2:-job-array}
number=${NUMBER:-100}

part() {    # part I of N
    gencli sample "$run" -n "$number" --seed 1 --shard "$1/$2" -q -o "$out/part-$1.tar"
}

mkdir -p "$out"
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    part "$SLURM_ARRAY_TASK_ID" "$SLURM_ARRAY_TASK_COUNT"
    exit
fi
for i in 1 2 3; do part "$i" 3; done

mkdir "$out/parts" "$out/whole"
for i in 1 2 3; do tar -x -C "$out/parts" --exclude='__gencli__*' -f "$out/part-$i.tar"; done
gencli sample "$run" -n "$number" --seed 1 -q | tar -x -C "$out/whole" --exclude='__gencli__*'
diff -r "$out/parts" "$out/whole"
echo "3 parts, together the same $number samples as drawn at once"
