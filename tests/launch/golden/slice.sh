#!/bin/bash
# Ask; the answer comes when there is room.
gcloud compute tpus queued-resources create big --zone=us-east5-a --project=mine --accelerator-type=v5p-256 --runtime-version=v2-alpha-tpuv5 --node-id=big --reserved
# Go on when this prints ACTIVE.
gcloud compute tpus queued-resources describe big --zone=us-east5-a --project=mine '--format=value(state.state)'
# Prepare every host.
gcloud compute tpus queued-resources ssh big --zone=us-east5-a --project=mine --node=all --worker=all '--command=git clone https://example.org/code transformer-research && pip install '"'"'./transformer-research[tpu]'"'"''
# Train.
gcloud compute tpus queued-resources ssh big --zone=us-east5-a --project=mine --node=all --worker=all '--command=cd transformer-research && { export TRANSFORMER_DISTRIBUTED=1; for start in $(seq 0 3); do python -m experiments.train --config=a.py --workdir=gs://bucket/big; code=$?; case $code in 0|2|65|74) break;; esac; done; exit "$code"; }'
# Give it back.
gcloud compute tpus queued-resources delete big --zone=us-east5-a --project=mine --force
