#!/usr/bin/env bash
# A run on N GPUs of this machine: trainings are spread over them, and N workers sample and score, one on each.
#
#   jobs/local.sh CONFIG RUN_DIR [N] [KEY=VALUE ...]       N: all that nvidia-smi lists
#
# Start it again to go on. Of N GPUs that do not hold the weights: train.engine.name=zero3 or fsdp2 as a further value.
set -euo pipefail
config=${1:?usage: $0 CONFIG RUN_DIR [N] [KEY=VALUE ...]}
run=${2:?usage: $0 CONFIG RUN_DIR [N] [KEY=VALUE ...]}
gpus=${3:-$(nvidia-smi --list-gpus | wc -l)}
shift $(($# < 3 ? $# : 3))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(($(nproc) / gpus > 0 ? $(nproc) / gpus : 1))}
exec talker-rl run -c "$config" --run-dir "$run" devices="$gpus" workers="$gpus" "$@"
