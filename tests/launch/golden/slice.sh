#!/bin/bash
set -e
# Ask; the answer comes when there is room.
gcloud compute tpus queued-resources create big --zone=us-east5-a --project=mine --accelerator-type=v5p-256 --runtime-version=v2-alpha-tpuv5 --node-id=big --reserved
# Wait until it is there.
until
    state=$(gcloud compute tpus queued-resources describe big --zone=us-east5-a --project=mine '--format=value(state.state)')
    echo "$state"
    [[ $state == ACTIVE ]]
do
    case $state in FAILED | SUSPENDED) exit 1 ;; esac
    sleep 60
done
# Prepare every host.
gcloud compute tpus queued-resources ssh big --zone=us-east5-a --project=mine --node=all --worker=all --batch-size=all '--command=git clone https://example.org/code transformer-research && pip install '"'"'./transformer-research[tpu]'"'"''
# Train.
gcloud compute tpus queued-resources ssh big --zone=us-east5-a --project=mine --node=all --worker=all --batch-size=all '--command=cd transformer-research && rm -f big.code && { nohup bash -c '"'"'export TRANSFORMER_DISTRIBUTED=1; for start in $(seq 0 3); do [ $start = 0 ] || sleep 30; python -m experiments.train --config=a.py --workdir=/mnt/bucket/big; code=$?; case $code in 0|2|65|74) break;; esac; done; echo $code > big.code'"'"' > big.log 2>&1 < /dev/null & }'
# Wait.
gcloud compute tpus queued-resources ssh big --zone=us-east5-a --project=mine --node=all --worker=all --batch-size=all '--command=cd transformer-research && { tail -n +1 -f big.log & while [ ! -s big.code ]; do sleep 2; done; sleep 1; kill $!; exit "$(cat big.code)"; }'
# Give it back, once nothing on it is wanted any more:
# gcloud compute tpus queued-resources delete big --zone=us-east5-a --project=mine --force
