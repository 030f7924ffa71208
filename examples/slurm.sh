#!/bin/sh
# A training under Slurm that is longer than a job may be: it stops in time, saves, and the job queues itself again.
#   sbatch slurm.sh vae mnist runs/vae --preset mnist    what stands after the run goes to gencli train
# Also a job that is preempted, or killed with its node, goes on where its last checkpoint is.
#SBATCH --job-name=gencli
#SBATCH --time=04:00:00
#SBATCH --cpus-per-task=8
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@300
set -eu
family=$1 data=$2 run=$3
shift 3

# Five minutes before the end Slurm sends SIGUSR1 to this shell (B:), which passes it on; a trap runs at once only while the
# shell waits. --time-limit is for where no signal comes.
stopped=
trap 'stopped=1; kill -USR1 "$training"' USR1
OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1} \
    gencli train "$family" "$data" -o "$run" --time-limit "${TIME_LIMIT:-230m}" --resume "$@" &
training=$!
status=0
wait "$training" || status=$?
if [ "$stopped" ]; then    # what ended was the waiting
    status=0
    wait "$training" || status=$?
fi

case $status in
    0) gencli sample "$run" -n 64 -q -o "$run/final.tar" ;;
    75) scontrol requeue "$SLURM_JOB_ID" ;;    # saved; the same command goes on
    *) exit "$status" ;;
esac
