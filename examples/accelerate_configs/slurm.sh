#!/bin/bash
# Four machines of eight GPUs under SLURM:
#     sbatch examples/accelerate_configs/slurm.sh RECIPE.yaml --output_dir outputs/run --bf16 True
# Five minutes before its time is over, and when the machines are wanted back, the job writes a checkpoint, ends and puts
# itself into the queue again; the same command resumes from there. The output folder must be on shared storage.
#SBATCH --job-name=cover
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=29500

# One task for each process: a launcher in between would pass on neither signals nor exit codes.
srun --kill-on-bad-exit=1 bash -c \
    'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS exec python examples/cotrain.py "$@"' \
    cotrain "$@"
code=$?

if [ "$code" -eq 75 ]; then # told to stop, and a checkpoint is written
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
