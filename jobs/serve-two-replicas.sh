#!/usr/bin/env bash
# Two reward services on this machine and a run that scores through both. Stop it with Ctrl-C: both drain.
#
#   jobs/serve-two-replicas.sh configs/demo.yaml runs/demo
#
# On two machines: the same two `serve` lines, one on each, with --host 0.0.0.0 and the same TALKER_RL_TOKEN; both must
# have the same configuration, checkpoint and version of talker_rl, or the client refuses to mix them.
set -euo pipefail
config=${1:?usage: $0 CONFIG RUN_DIR}
run=${2:?usage: $0 CONFIG RUN_DIR}
first=${FIRST_PORT:-8020}
second=$((first + 1))

talker-rl serve --config "$config" --port "$first" &
one=$!
talker-rl serve --config "$config" --port "$second" &
two=$!
trap 'kill -TERM $one $two 2>/dev/null; wait $one $two' EXIT

# The client waits until a service is ready (300 s at most) and goes around one that is down.
talker-rl score --config "$config" --run-dir "$run" \
    --endpoint "http://127.0.0.1:$first" "http://127.0.0.1:$second"
