# shellcheck shell=bash
# What the batch scripts beside this file share: where omr is, how its processes talk, and how a job starts anew.
# Set the variables before `sbatch`, which passes them on, or change their defaults here for your site.

# Modules, proxies and secrets of your site come here, where unset variables are no errors yet: module load cuda; ...

set -euo pipefail

# The checkout, on a file system that all nodes share: submit from it. Its code runs, whatever python has installed.
OMR_HOME=${OMR_HOME:-${SLURM_SUBMIT_DIR:-$PWD}}
# The environment that `make setup` makes, or your own with GPU builds of torch, Transformer Engine and vLLM.
OMR_VENV=${OMR_VENV:-$OMR_HOME/.venv}
# An image for pyxis and enroot, such as /images/omr.sqsh; then python is the image's. Empty: no container.
OMR_CONTAINER=${OMR_CONTAINER:-}
OMR_MOUNTS=${OMR_MOUNTS:-$OMR_HOME:$OMR_HOME} # with a container: add /data:/data, /models:/models and so on
# The network interface of NCCL and gloo, such as ib0 or eth0 (`ip -brief address` on a node); empty: they choose.
OMR_INTERFACE=${OMR_INTERFACE:-}
# A job starts anew so many times at most: one whose time is too short for a step would do so for ever.
OMR_REQUEUES=${OMR_REQUEUES:-20}

export PYTHONPATH=$OMR_HOME${PYTHONPATH:+:$PYTHONPATH}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}} # of each process: ranks share a node's cores
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}                  # srun does not take --cpus-per-task of sbatch
export PYTHONUNBUFFERED=1 # the log has what was printed before a task was killed
if [[ $OMR_INTERFACE ]]; then export NCCL_SOCKET_IFNAME=$OMR_INTERFACE GLOO_SOCKET_IFNAME=$OMR_INTERFACE; fi

# Runs `omr ARGUMENTS` as the job's step, one process for each of its tasks, and ends as it does. When the time limit is
# near, the job goes back to the queue; so does one that lost a node, by Slurm itself once SlurmdTimeout is over, also
# where tasks on other nodes failed of it. omr then continues from the last checkpoint.
run_omr() {
    local srun=(srun --kill-on-bad-exit=1) python=$OMR_VENV/bin/python step='' code=0 signalled=1 asked=0
    if [[ $OMR_CONTAINER ]]; then
        srun+=("--container-image=$OMR_CONTAINER" "--container-mounts=$OMR_MOUNTS" "--container-workdir=$OMR_HOME")
        python=python3
    fi
    # `#SBATCH --signal=B:USR1@SECONDS` comes here alone; srun passes it on to every task. bash heeds it only while it
    # waits for a process in the background, and ends that wait: then it waits again.
    trap 'asked=1 signalled=1; [[ -z $step ]] || kill -USR1 "$step" || true' USR1
    "${srun[@]}" "$python" -m launch.cli "$@" &
    step=$!
    while ((signalled)); do
        signalled=0 code=0
        wait "$step" || code=$?
    done
    trap '' USR1
    if ((code == 0)); then return; fi
    echo "omr.sbatch: job ${SLURM_JOB_ID} ended with code $code: omr $*" >&2
    # 75 says that the run is saved and continues; a task that had no time to say so was ended by the signal
    if ((code == 75 || (asked && code > 128))) && ((${SLURM_RESTART_COUNT:-0} < OMR_REQUEUES)); then
        echo "omr.sbatch: it stopped ahead of the time limit: job $SLURM_JOB_ID goes back to the queue" >&2
        if ((SECONDS < 60)); then
            echo "omr.sbatch: after $SECONDS s: --time must be much longer than the SECONDS of --signal=B:USR1@SECONDS" >&2
        fi
        if scontrol requeue "$SLURM_JOB_ID"; then sleep 600; fi # Slurm ends this script meanwhile
    fi
    exit "$code"
}
