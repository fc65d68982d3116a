#!/bin/bash
set -e
# Ask; the answer comes when there is room.
gcloud compute tpus queued-resources create train --zone=us-east5-a --accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --node-count=2 --spot
# Wait until it is there.
until
    state=$(gcloud compute tpus queued-resources describe train --zone=us-east5-a '--format=value(state.state)')
    echo "$state"
    [[ $state == ACTIVE ]]
do
    case $state in FAILED | SUSPENDED) exit 1 ;; esac
    sleep 60
done
# Train: learning_rate=1e-3.
gcloud compute tpus queued-resources ssh train --zone=us-east5-a --node=all --worker=all --batch-size=all '--command=cd transformer-research && rm -f learning_rate=1e-3.code && { nohup bash -c '"'"'export TRANSFORMER_DISTRIBUTED=1; for start in $(seq 0 0); do [ $start = 0 ] || sleep 30; python -m experiments.train --config=a.py --workdir=/mnt/bucket/big/learning_rate=1e-3 --config.training.optimizer.learning_rate=1e-3; code=$?; case $code in 0|2|65|74) break;; esac; done; echo $code > learning_rate=1e-3.code'"'"' > learning_rate=1e-3.log 2>&1 < /dev/null & }'
# Wait: learning_rate=1e-3.
gcloud compute tpus queued-resources ssh train --zone=us-east5-a --node=all --worker=all --batch-size=all '--command=cd transformer-research && { tail -n +1 -f learning_rate=1e-3.log & while [ ! -s learning_rate=1e-3.code ]; do sleep 2; done; sleep 1; kill $!; exit "$(cat learning_rate=1e-3.code)"; }' || echo 'learning_rate=1e-3 failed' >&2
# Train: learning_rate=3e-4.
gcloud compute tpus queued-resources ssh train --zone=us-east5-a --node=all --worker=all --batch-size=all '--command=cd transformer-research && rm -f learning_rate=3e-4.code && { nohup bash -c '"'"'export TRANSFORMER_DISTRIBUTED=1; for start in $(seq 0 0); do [ $start = 0 ] || sleep 30; python -m experiments.train --config=a.py --workdir=/mnt/bucket/big/learning_rate=3e-4 --config.training.optimizer.learning_rate=3e-4; code=$?; case $code in 0|2|65|74) break;; esac; done; echo $code > learning_rate=3e-4.code'"'"' > learning_rate=3e-4.log 2>&1 < /dev/null & }'
# Wait: learning_rate=3e-4.
gcloud compute tpus queued-resources ssh train --zone=us-east5-a --node=all --worker=all --batch-size=all '--command=cd transformer-research && { tail -n +1 -f learning_rate=3e-4.log & while [ ! -s learning_rate=3e-4.code ]; do sleep 2; done; sleep 1; kill $!; exit "$(cat learning_rate=3e-4.code)"; }' || echo 'learning_rate=3e-4 failed' >&2
# Give it back, once nothing on it is wanted any more:
# gcloud compute tpus queued-resources delete train --zone=us-east5-a --force
