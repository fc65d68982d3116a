#!/bin/bash
# Ask; the answer comes when there is room.
gcloud compute tpus queued-resources create train --zone=us-east5-a --accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --node-count=2 --spot
# Go on when this prints ACTIVE.
gcloud compute tpus queued-resources describe train --zone=us-east5-a '--format=value(state.state)'
# Train: learning_rate=1e-3.
gcloud compute tpus queued-resources ssh train --zone=us-east5-a --node=all --worker=all '--command=cd transformer-research && { export TRANSFORMER_DISTRIBUTED=1; for start in $(seq 0 0); do python -m experiments.train --config=a.py --workdir=gs://bucket/big/learning_rate=1e-3 --config.training.optimizer.learning_rate=1e-3; code=$?; case $code in 0|2|65|74) break;; esac; done; exit "$code"; }'
# Train: learning_rate=3e-4.
gcloud compute tpus queued-resources ssh train --zone=us-east5-a --node=all --worker=all '--command=cd transformer-research && { export TRANSFORMER_DISTRIBUTED=1; for start in $(seq 0 0); do python -m experiments.train --config=a.py --workdir=gs://bucket/big/learning_rate=3e-4 --config.training.optimizer.learning_rate=3e-4; code=$?; case $code in 0|2|65|74) break;; esac; done; exit "$code"; }'
# Give it back.
gcloud compute tpus queued-resources delete train --zone=us-east5-a --force
