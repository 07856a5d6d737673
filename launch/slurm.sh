#!/usr/bin/env bash
# Trains on GPUs of one or more nodes under Slurm.
#
#   bash launch/slurm.sh --config=configs/bracs.py --workdir=/shared/DIR --nodes=2 --gpus-per-node=8
#     [--cpus-per-gpu=8] [--attempts=100] [--sbatch=OPTION ...] [--dry-run] [-- --config.field=value ...]
#
# Run it on a login node; this checkout and the workdir lie where every node sees them. --sbatch takes any other option of
# sbatch, e.g. --sbatch=--partition=gpu --sbatch=--time=24:00:00. Before the time limit or on preemption the tasks save a
# checkpoint and the job queues again, until training has finished, its input is refused, or --attempts are used up.
set -euo pipefail
# shellcheck source=launch/launcher.sh
. "$(dirname "${BASH_SOURCE[0]}")/launcher.sh"

CPUS_PER_GPU=8 ATTEMPTS=100 NODES='' GPUS_PER_NODE=''
read_options "nodes gpus-per-node cpus-per-gpu attempts sbatch*" "$@"
need config workdir nodes gpus-per-node
need_numbers nodes gpus-per-node cpus-per-gpu attempts
need_shared_workdir
case "$WORKDIR" in
  *[[:space:]%\"\'\\]*) fail "--workdir=$WORKDIR; expected no space, quote, % or backslash: Slurm reads it in #SBATCH --output" ;;
esac
cd "$ROOT"
need_config
run cd "$ROOT"

# One task per GPU. JAX under Slurm gives every task the one GPU of its local rank, so one task per node would leave the
# others idle; and a task must see all GPUs of its node for that, hence no --gpus-per-task.
#
# The signal goes to the tasks, not to the job's shell. srun leaves the other tasks alone when one fails: JAX ends them
# once it misses one, and killing them would hide the code 2 by which each says that its input is unusable.
job() {
  local name summary
  name="$(basename "${CONFIG%%:*}" .py)"
  summary="$(quote "$WORKDIR/summary.json")"
  training_command .venv/bin/python --multihost
  cat <<JOB
#!/usr/bin/env bash
#SBATCH --job-name=$name
#SBATCH --nodes=$NODES
#SBATCH --gpus-per-node=$GPUS_PER_NODE
#SBATCH --ntasks-per-node=$GPUS_PER_NODE
#SBATCH --cpus-per-task=$CPUS_PER_GPU
#SBATCH --output=$WORKDIR/slurm-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@120
$(for option in ${EXTRA[@]+"${EXTRA[@]}"}; do echo "#SBATCH $option"; done)
cd $(quote "$ROOT") || exit 1
trap : TERM # the tasks have it too and save; this shell waits for them
status=0
srun --kill-on-bad-exit=0 --cpus-per-task=$CPUS_PER_GPU $(quote "${COMMAND[@]}") || status=\$?
[ ! -e $summary ] || exit 0
[ "\$status" -ne 2 ] || exit 2 # the config or the data cannot be used; another attempt would not change that
if [ \$((\${SLURM_RESTART_COUNT:-0} + 1)) -ge $ATTEMPTS ]; then
  echo "error: training has not finished after $ATTEMPTS attempts; submit it again to go on" >&2
  exit 1
fi
case "\$(squeue --noheader --jobs="\$SLURM_JOB_ID" --format=%T)" in
  CANCELLED* | COMPLETING*) exit "\$status" ;; # by its owner, or Slurm queues it again itself
esac
scontrol requeue "\$SLURM_JOB_ID"
JOB
}

install_here cuda
run mkdir -p "$WORKDIR"
if [ -n "$DRY_RUN" ]; then
  echo "sbatch <<'JOB'"
  job
  echo JOB
else
  job | sbatch
fi
