"""Write a JobSet manifest for Kubernetes; nothing is applied.

    python -m launch.kubernetes --image=IMAGE --nodes=4 --gpus=8 --claim=checkpoints \
        -- python -m experiments.train --config=... --workdir=/checkpoints/big > big.yaml
    python -m launch.kubernetes --image=IMAGE --topology=v5p:4x4x4 --slices=2 --claim=checkpoints -- ...

Then `kubectl apply -f big.yaml`, on a cluster with JobSet (https://jobset.sigs.k8s.io). Every node runs one process
with all of the node's GPUs; or every host of a TPU slice on GKE, with its four chips, runs one. The volume claim, which
all nodes are to mount at one time, holds the checkpoints at `--mount`. When a process fails, all are started anew, up
to `--restarts` times, and go on from the last checkpoint; what would come again, such as a mistake on the command line,
ends the job. Pods that are told to end, as when their node is drained, save, end with exit code 79 and are replaced,
however often. The runs of a sweep are a manifest each, in one file.
"""

from __future__ import annotations

import math
import posixpath
import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import yaml
from absl import flags

from experiments import command
from launch import DETECT, FINAL, STOPPED, STOPPED_CODE, sweep

NAME = flags.DEFINE_string("name", "train", "Of the JobSet.")
NAMESPACE = flags.DEFINE_string("namespace", None, "Default: that of kubectl's configuration.")
IMAGE = flags.DEFINE_string("image", None, "The container's, with this code and what it needs.")
NODES = flags.DEFINE_integer("nodes", 1, "Machines with GPUs.", lower_bound=1)
GPUS = flags.DEFINE_integer("gpus", None, "NVIDIA GPUs of each machine.", lower_bound=1)
GPU_TYPE = flags.DEFINE_string("gpu_type", None, "The machines' on GKE, such as nvidia-h100-80gb; default: any.")
TOPOLOGY = flags.DEFINE_string("topology", None, "Of a TPU slice on GKE, such as v5p:4x4x4.")
SLICES = flags.DEFINE_integer("slices", 1, "TPU slices that train as one.", lower_bound=1)
RESTARTS = flags.DEFINE_integer("restarts", 3, "How often all are started anew.", lower_bound=0)
CLAIM = flags.DEFINE_string("claim", None, "A persistent volume claim for checkpoints.")
MOUNT = flags.DEFINE_string("mount", "/checkpoints", "Where the claim is mounted.")
LOSE = flags.DEFINE_boolean("lose_checkpoints", False, "Allow a run whose checkpoints go when its pods do.")
GRACE = flags.DEFINE_integer("grace", 120, "Seconds to save after a notice to end.", lower_bound=0)
SWEEP = sweep.define()

SLICE_TYPES = {  # https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus
    "v4": "tpu-v4-podslice",
    "v5e": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
}
FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")  # slices of v5e and v6e; the source is the same
SOLID = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")  # of v4 and v5p, beside multiples of four
HOST_CHIPS = 4  # of a slice with several hosts
PORT = 8476
JOB = "workers"
LONGEST = 40  # characters of a name, which leave room for what JobSet puts behind it, and a sweep
INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"


def main(words: list[str]) -> None:
    runs = sweep.runs(SWEEP, words)
    names = [NAME.value] if len(runs) == 1 else [f"{NAME.value}-{index}" for index in range(len(runs))]
    manifests = [manifest(name, run) for name, run in zip(names, runs, strict=True)]
    print(yaml.safe_dump_all(manifests, sort_keys=False, width=math.inf, allow_unicode=True), end="")


def manifest(name: str, run: sweep.Run) -> dict[str, Any]:
    """A JobSet of API version v1alpha2.

    Raises:
      ValueError: if something is missing or cannot work.
    """
    if not IMAGE.value:
        raise ValueError("--image is missing: name the container's, with this code and what it needs")
    if (GPUS.value is None) == (TOPOLOGY.value is None):
        raise ValueError("give --gpus, the number in each machine, or --topology, that of a TPU slice")
    if not re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", NAME.value) or len(NAME.value) > LONGEST:
        raise ValueError(
            f"--name={NAME.value} cannot work: use up to {LONGEST} of a-z, 0-9 and -, beginning with a letter"
        )
    _check_workdir(sweep.workdir(run.command))
    jobs, pods, pod = _on_gpus(name) if TOPOLOGY.value is None else _on_tpus()
    metadata = {"name": name}
    if NAMESPACE.value:
        metadata["namespace"] = NAMESPACE.value
    annotations = {"transformer-research/run": run.name} if run.name else {}
    if TOPOLOGY.value is not None:
        # One slice is one pool of nodes, and takes one job.
        annotations["alpha.jobset.sigs.k8s.io/exclusive-topology"] = "cloud.google.com/gke-nodepool"
    if annotations:
        metadata["annotations"] = annotations
    job = {
        "parallelism": pods,
        "completions": pods,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": [_on_exit("FailJob", FINAL), _on_exit("Ignore", [STOPPED])]},
        "template": {"spec": _pod(pod, run.command)},
    }
    rule = {"name": "final", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "network": {"enableDNSHostnames": True, "subdomain": name},
            "failurePolicy": {"maxRestarts": RESTARTS.value, "rules": [rule]},
            "replicatedJobs": [{"name": JOB, "replicas": jobs, "template": {"spec": job}}],
        },
    }


def _check_workdir(workdir: str | None) -> None:
    """Refuses checkpoints that go when a pod does, unless that is meant."""
    if workdir is None or LOSE.value:
        return
    path, mount = (PurePosixPath(posixpath.normpath(folder)) for folder in (workdir, MOUNT.value))
    if CLAIM.value and path.is_relative_to(mount):
        return
    fix = f"name a folder below --mount={MOUNT.value}" if CLAIM.value else "name a volume with --claim"
    raise ValueError(
        f"--workdir={workdir} is gone when a pod ends, and every restart begins at step 0: {fix}, or allow it with "
        "--lose_checkpoints"
    )


def _on_exit(action: str, codes: Sequence[int]) -> dict[str, Any]:
    return {"action": action, "onExitCodes": {"containerName": JOB, "operator": "In", "values": list(codes)}}


def _on_gpus(name: str) -> tuple[int, int, dict[str, Any]]:
    """Jobs, pods of each, and what a pod has: its environment, resources and nodes."""
    if SLICES.value != 1:
        raise ValueError("--slices are of TPUs: give --topology, or leave it out")
    selector = {} if GPU_TYPE.value is None else {"cloud.google.com/gke-accelerator": GPU_TYPE.value}
    environment = [
        {"name": "JAX_COORDINATOR_ADDRESS", "value": f"{name}-{JOB}-0-0.{name}:{PORT}"},
        {"name": "JAX_NUM_PROCESSES", "value": str(NODES.value)},
        {"name": "JAX_PROCESS_ID", "valueFrom": {"fieldRef": {"fieldPath": INDEX}}},
    ]
    return 1, NODES.value, {"env": environment, "limits": {"nvidia.com/gpu": GPUS.value}, "selector": selector}


def _on_tpus() -> tuple[int, int, dict[str, Any]]:
    """As `_on_gpus`; which process is which, JAX learns from GKE."""
    kind, _, shape = TOPOLOGY.value.partition(":")
    if kind not in SLICE_TYPES:
        known = ", ".join(SLICE_TYPES)
        raise ValueError(f"--topology={TOPOLOGY.value} is not known: give KIND:AxB or KIND:AxBxC, KIND one of {known}")
    _check_shape(kind, shape)
    if NODES.value != 1 or GPU_TYPE.value is not None:
        raise ValueError("--nodes and --gpu_type are of GPUs: the topology says how many hosts there are")
    chips = math.prod(map(int, shape.split("x")))
    selector = {
        "cloud.google.com/gke-tpu-accelerator": SLICE_TYPES[kind],
        "cloud.google.com/gke-tpu-topology": shape,
    }
    limits = {"google.com/tpu": min(chips, HOST_CHIPS)}
    environment = [{"name": DETECT, "value": "1"}]
    return SLICES.value, max(1, chips // HOST_CHIPS), {"env": environment, "limits": limits, "selector": selector}


def _check_shape(kind: str, shape: str) -> None:
    """Raises ValueError for a slice that there is not."""
    if kind in ("v5e", "v6e"):
        exists, known = shape in FLAT, f"one of {', '.join(FLAT)}"
    else:
        sides = [int(side) for side in shape.split("x")] if re.fullmatch(r"[1-9]\d*(x[1-9]\d*){2}", shape) else []
        larger = len(sides) == 3 and sides == sorted(sides) and not any(side % 4 for side in sides)
        exists, known = shape in SOLID or larger, f"{', '.join(SOLID)} or AxBxC of multiples of 4 with A <= B <= C"
    if not exists:
        raise ValueError(f"--topology={TOPOLOGY.value} cannot work: there is no such slice; of {kind} give {known}")


def _pod(pod: dict[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """A pod's specification."""
    volumes, mounts = (
        [{"name": "memory", "emptyDir": {"medium": "Memory"}}],
        [{"name": "memory", "mountPath": "/dev/shm"}],
    )
    if CLAIM.value:
        volumes.append({"name": "checkpoints", "persistentVolumeClaim": {"claimName": CLAIM.value}})
        mounts.append({"name": "checkpoints", "mountPath": MOUNT.value})
    container = {
        "name": JOB,
        "image": IMAGE.value,
        "command": [word.replace("$", "$$") for word in words],  # Kubernetes would put variables in
        "env": [*pod["env"], {"name": STOPPED_CODE, "value": str(STOPPED)}],
        "resources": {"limits": pod["limits"]},
        "volumeMounts": mounts,
    }
    spec = {"restartPolicy": "Never", "terminationGracePeriodSeconds": GRACE.value}
    if pod["selector"]:
        spec["nodeSelector"] = pod["selector"]
    return {**spec, "containers": [container], "volumes": volumes}


if __name__ == "__main__":
    command.run(main, words=True)
