#!/bin/sh
# A night's batch for cron: silent when all is well; started twice, or killed and started again, it does no harm.
#   15 2 * * *   cd /srv/models && sh nightly.sh
# Each night trains for at most TIME_LIMIT from where the last one stopped; what is trained is sampled and measured.
# Usage: sh nightly.sh [FOLDER]
set -eu
out=${1:-nightly}
run=$out/vae
today=$out/$(date +%F)

status=0
said=$(gencli train vae digits -o "$run" --binarize dynamic --steps "${STEPS:-20000}" \
    --time-limit "${TIME_LIMIT:-2h}" --resume -q 2>&1) || status=$?
case $status in
    0) ;;            # trained to the end
    75) exit 0 ;;    # time is over, a checkpoint is saved: the next night goes on
    8) exit 0 ;;     # an earlier night still holds the run
    *) printf '%s\n' "$said" >&2; exit "$status" ;;    # cron mails what is printed
esac

mkdir -p "$today"
gencli sample "$run" -n 64 --seed "$(date +%Y%m%d)" -q -o "$today/samples.png"
# Exits with 5, and says why, if the model is not good enough.
gencli evaluate "$run" digits:test --limit 500 --draw 0 --require "${REQUIRE:-elbo<=130}" --json -q \
    > "$today/evaluation.json"
