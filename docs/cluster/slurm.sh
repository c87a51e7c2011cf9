#!/bin/bash
# Train on two machines of eight GPUs, and come back after the time limit until the run is finished.
#   sbatch docs/cluster/slurm.sh
#SBATCH --job-name=vitrail
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@300

RUN=runs/tnt
COMMAND="vitrail train tnt_s_imagenet data.root=/data/imagenet --resume $RUN"
MOST_RESTARTS=50

# five minutes before the end: SIGTERM saves the run, and the job goes back into the queue
# the signal goes to the step, the first of this job; srun itself would answer it by killing its tasks
requeue() {
    echo "time is nearly up; saving, then back into the queue"
    scancel --signal=TERM "$SLURM_JOB_ID.0"
    wait "$SRUN"
    if [ "${SLURM_RESTART_COUNT:-0}" -lt "$MOST_RESTARTS" ]; then
        scontrol requeue "$SLURM_JOB_ID"
    fi
    exit 75
}
trap requeue USR1

FIRST=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# before and after Slurm 22.05 to 23.02, srun would take the cores of a task from sbatch
srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" torchrun \
    --nnodes "$SLURM_NNODES" --nproc-per-node 8 --max-restarts 3 --shutdown-timeout 240 \
    --rdzv-backend c10d --rdzv-endpoint "$FIRST:29500" --rdzv-id "$SLURM_JOB_ID" \
    -m $COMMAND &
SRUN=$!
wait "$SRUN"
