#!/usr/bin/env bash
# One command on a Ray cluster over the machines of a Slurm job; both are there as long as it runs.
# From the root of the repository, on a file system that all machines see:
#   sbatch --nodes=2 --gpus-per-node=8 deploy/slurm.sh jobs/run.py cluster=large domain=math \
#       data.path=/shared/math.jsonl storage=/shared/instructdiff run_dir=/shared/runs/math
# After a failure, or when the time is up, the same again goes on where it stopped.
#SBATCH --job-name=instructdiff
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --output=instructdiff-%j.log
set -euo pipefail

python=${PYTHON:-$PWD/.venv/bin/python}
ray=$(dirname "$python")/ray
port=${RAY_PORT:-6379}

# Only processes of this job may join or submit: others of the site can reach these ports too.
RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$("$python" -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_MODE RAY_AUTH_TOKEN

# Apart from another Ray of yours on the machine; and short, for the paths of sockets are below it.
RAY_TMPDIR=/tmp/ray-$SLURM_JOB_ID
export RAY_TMPDIR

mapfile -t machines < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${machines[0]} # where this script runs
# By number, for Ray does not read /etc/hosts; the one that Ray itself takes for this machine's.
address=$("$python" -c 'import ray; print(ray.util.get_node_ip_address())'):$port

# Ray on a machine, with options of `ray start`, until this job ends. All CPUs are named twice: a step
# gets one for its task otherwise, and Ray would count those of the machine. GPUs Slurm gives to each
# step, and Ray finds them.
ray_on() {
    srun --nodes=1 --ntasks=1 --nodelist="$1" --cpus-per-task="$SLURM_CPUS_ON_NODE" --overlap \
        "$ray" start --block --disable-usage-stats --num-cpus="$SLURM_CPUS_ON_NODE" "${@:2}" &
}

# `ray symmetric-run` would do this too, but ends with `ray stop`: of every Ray of yours on a machine.
ray_on "$head" --head --port="$port" --dashboard-host=127.0.0.1
until "$ray" health-check --address="$address" > /dev/null 2>&1; do
    ((SECONDS < 180)) || { echo "error: no head of Ray came up at $address" >&2; exit 1; }
    sleep 2
done
for machine in "${machines[@]:1}"; do
    ray_on "$machine" --address="$address"
done

# The work begins on the head and spreads as the others join.
RAY_ADDRESS=$address "$python" "$@"
