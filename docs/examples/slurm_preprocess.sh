#!/usr/bin/env bash
# Preprocessing on a Slurm cluster: an array of parts, then one job that puts the data set together.
#
#   sbatch docs/examples/slurm_preprocess.sh                          # the parts; prints a job number
#   sbatch --dependency=afterok:NUMBER --array=0 --export=ALL,FINISH=1 docs/examples/slurm_preprocess.sh
#
# A part that was killed or ran out of time goes on where it was when it is submitted again.
#SBATCH --job-name=xdyna-preprocess
#SBATCH --array=0-31
#SBATCH --cpus-per-task=16
#SBATCH --mem=48G
#SBATCH --time=24:00:00
#SBATCH --requeue
set -euo pipefail

FOOTAGE="${FOOTAGE:-/data/footage}" # folder, glob or list; the same for all parts
OUT="${OUT:-/data/datasets/mine}"   # on a file system that all machines share
PARTS=32                            # as many as the array has

if [ -n "${FINISH:-}" ]; then
  .venv/bin/python scripts/preprocess.py "$FOOTAGE" --out "$OUT" --finish
else
  .venv/bin/python scripts/preprocess.py "$FOOTAGE" --out "$OUT" \
    --shard "$SLURM_ARRAY_TASK_ID/$PARTS" --workers "$SLURM_CPUS_PER_TASK"
fi
