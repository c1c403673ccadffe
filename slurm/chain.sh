#!/usr/bin/env bash
# Submits data -> sft -> convert -> rl -> eval. Each stage starts when the one before has succeeded, and is cancelled
# if that fails or is cancelled. Stages that are not given are left out. Prints each stage and the number of its job.
#
#   slurm/chain.sh \
#       --sbatch "--partition=gpu --account=mine" \
#       --data "curate openmmreasoner_rl" \
#       --sft "--nodes=4 -- qwen2_5_vl_7b_sft --run runs/7b" \
#       --convert "to-hf runs/7b/checkpoints/step-00004300 models/7b-sft" \
#       --rl "--nodes=8 -- openmmreasoner_gspo --model models/7b-sft --run runs/7b_rl" \
#       --eval "qwen2_5_vl_7b_greedy --model runs/7b_rl/hf --out runs/7b_rl/eval"
#
# A stage is what follows `omr STAGE`; options of its sbatch come first, closed by --. Words are split at spaces and ends
# of lines.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

stages=(data sft convert rl eval)
common=''
declare -A given=()
while (($#)); do
    name=${1#--} value=${2-}
    value=${value//[$'\n\t']/ }
    if (($# < 2)); then
        echo "chain.sh: $1 needs a value" >&2
        exit 2
    elif [[ $name == sbatch ]]; then
        common=$value
    elif [[ " ${stages[*]} " == *" $name "* && $1 == --* ]]; then
        given[$name]=$value
    else
        echo "chain.sh: $1 is none of --sbatch, --data, --sft, --convert, --rl, --eval" >&2
        exit 2
    fi
    shift 2
done
if ((${#given[@]} == 0)); then
    echo "chain.sh: give at least one stage, such as --sft \"demo\"" >&2
    exit 2
fi

before=''
for stage in "${stages[@]}"; do
    [[ ${given[$stage]-} ]] || continue
    options='' words=${given[$stage]}
    if [[ " $words" == *" -- "* ]]; then options=${words%%-- *} words=${words#*-- }; fi
    read -ra words <<<"$before $common $options slurm/$stage.sbatch $words"
    job=$(sbatch --parsable --kill-on-invalid-dep=yes "${words[@]}")
    echo "$stage ${job%%;*}"
    before=--dependency=afterok:${job%%;*}
done
