"""Manifests: their text, whether they fit the schema of a JobSet, and what they ask for."""

import copy
import json
import pathlib
import re
import subprocess
import sys

import jsonschema
import pytest
import yaml

from launch import DETECT, FINAL, STOPPED, STOPPED_CODE
from tests.conftest import ROOT
from transformer.training import distributed

TRAIN = ("python", "-m", "experiments.train", "--config=a.py", "--workdir=/checkpoints/big")
GPU = ("--image=example.org/train:1", "--nodes=4", "--gpus=8")
TPU = ("--image=example.org/train:1", "--topology=v5p:4x4x4")
SCHEMA = json.loads((pathlib.Path(__file__).parent / "jobset.schema.json").read_text())


def launch(*arguments):
    options = {"capture_output": True, "text": True, "timeout": 60, "cwd": ROOT}
    return subprocess.run([sys.executable, "-m", "launch.kubernetes", *arguments], **options)


def written(*arguments):
    """The text and its documents, which fit the schema."""
    process = launch(*arguments)
    assert process.returncode == 0, process.stderr
    manifests = list(yaml.safe_load_all(process.stdout))
    for manifest in manifests:
        jsonschema.validate(manifest, SCHEMA)
    return process.stdout, manifests


def job(manifest):
    (replicated,) = manifest["spec"]["replicatedJobs"]
    return replicated["replicas"], replicated["template"]["spec"]


def container(manifest):
    (one,) = job(manifest)[1]["template"]["spec"]["containers"]
    return one


@pytest.fixture(scope="module")
def on_gpus():
    options = ("--name=big", "--namespace=research", "--gpu_type=nvidia-h100-80gb", "--claim=checkpoints")
    return written(*GPU, *options, "--", *TRAIN)


def test_the_manifest_for_gpus(golden, on_gpus):
    text, (manifest,) = on_gpus
    golden("gpus.yaml", text)
    rules = job(manifest)[1]["podFailurePolicy"]["rules"]
    assert [(rule["action"], *rule["onExitCodes"]["values"]) for rule in rules] == [
        ("FailJob", *FINAL),
        ("Ignore", STOPPED),
    ]
    variables = {one["name"]: one.get("value") or one["valueFrom"] for one in container(manifest)["env"]}
    assert tuple(variables) == (*distributed.VARIABLES, STOPPED_CODE)
    # JobSet calls a pod JOBSET-JOB-INDEX-INDEX.SUBDOMAIN.
    host = f"big-{manifest['spec']['replicatedJobs'][0]['name']}-0-0.{manifest['spec']['network']['subdomain']}"
    assert re.fullmatch(rf"{host}:\d+", variables["JAX_COORDINATOR_ADDRESS"])
    assert variables["JAX_NUM_PROCESSES"] == str(job(manifest)[1]["completions"]) == "4"
    known = {**variables, "JAX_PROCESS_ID": "3"}
    assert distributed.settings(known)["process_id"] == 3


def test_the_manifests_of_a_sweep_on_tpus(golden):
    sweep = ("--sweep=model.width=64,128", "--slices=2", "--restarts=7", "--claim=c", "--mount=/runs")
    text, manifests = written(*TPU, *sweep, "--", *TRAIN[:-1], "--workdir=/runs/big")
    golden("tpus.yaml", text)
    assert [manifest["metadata"]["name"] for manifest in manifests] == ["train-0", "train-1"]
    for manifest, width in zip(manifests, (64, 128), strict=True):
        assert container(manifest)["command"][-1] == f"--config.model.width={width}"
        assert manifest["metadata"]["annotations"]["transformer-research/run"] == f"width={width}"
        assert container(manifest)["env"][0] == {"name": distributed.DETECT, "value": "1"}
    assert DETECT == distributed.DETECT


@pytest.mark.parametrize(
    ("topology", "hosts", "chips"),
    [("v4:2x2x1", 1, 4), ("v5e:1x1", 1, 1), ("v5e:4x4", 4, 4), ("v6e:16x16", 64, 4), ("v5p:8x8x16", 256, 4)],
)
def test_a_topology_is_its_hosts(topology, hosts, chips):
    _, (manifest,) = written("--image=i", f"--topology={topology}", "--", "true")
    replicas, one = job(manifest)
    assert (replicas, one["parallelism"], one["completions"]) == (1, hosts, hosts)
    assert container(manifest)["resources"]["limits"] == {"google.com/tpu": chips}
    selector = one["template"]["spec"]["nodeSelector"]
    assert selector["cloud.google.com/gke-tpu-topology"] == topology.split(":")[1]


def test_what_loses_checkpoints_is_written_where_it_is_meant():
    written(*GPU, "--lose_checkpoints", "--", *TRAIN)


def test_arguments_arrive_as_they_are(awkward):
    _, (manifest,) = written(*GPU, "--", "program", *awkward, "$(HOME)", "$$(HOME)")
    # Kubernetes makes one dollar of two, and takes a single one before a bracket for a variable.
    arrived = [re.sub(r"\$\$", "$", word) for word in container(manifest)["command"][1:]]
    assert arrived == [*awkward, "$(HOME)", "$$(HOME)"]
    assert not any(re.search(r"(?<!\$)(\$\$)*\$\(", word) for word in container(manifest)["command"])


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("apiVersion",), "jobset.x-k8s.io/v1"),
        (("spec", "failurePolicy", "maxRestart"), 3),
        (("spec", "failurePolicy", "maxRestarts"), "3"),
        (("spec", "network", "enableDnsHostnames"), True),
        (("spec", "replicatedJobs", 0, "replicas"), -1),
        (("spec", "replicatedJobs", 0, "template", "spec", "completionMode"), "indexed"),
        (("spec", "replicatedJobs", 0, "template", "spec", "template", "spec", "restartPolicy"), "OnFailure"),
        (("metadata", "name"), "Big"),
    ],
)
def test_the_schema_refuses_what_a_cluster_would(on_gpus, path, value):
    manifest = copy.deepcopy(on_gpus[1][0])
    inner = manifest
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(manifest, SCHEMA)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (GPU, "the command is missing"),
        (("--gpus=8", "--", "true"), "--image is missing"),
        ((GPU[0], "--", "true"), "give --gpus, the number in each machine, or --topology"),
        ((*GPU, "--topology=v5p:4x4x4", "--", "true"), "give --gpus, the number in each machine, or --topology"),
        ((*GPU, "--slices=2", "--", "true"), "--slices are of TPUs"),
        ((*TPU, "--nodes=2", "--", "true"), "--nodes and --gpu_type are of GPUs"),
        ((GPU[0], "--topology=v5p:4x4", "--", "true"), "there is no such slice; of v5p give 2x2x1, 2x2x2, 2x2x4,"),
        ((GPU[0], "--topology=v4:8x4x4", "--", "true"), "or AxBxC of multiples of 4 with A <= B <= C"),
        ((GPU[0], "--topology=v6e:2x2x1", "--", "true"), "of v6e give one of 1x1, 2x2, 2x4,"),
        ((GPU[0], "--topology=v9:4x4", "--", "true"), "KIND one of v4, v5e, v5p, v6e"),
        ((*GPU, "--", *TRAIN), "every restart begins at step 0: name a volume with --claim, or allow it with"),
        ((*GPU, "--claim=c", "--", "true", "--workdir=runs/a"), "name a folder below --mount=/checkpoints, or"),
        ((*GPU, "--claim=c", "--", "true", "--workdir", "/checkpoints/../a"), "name a folder below --mount="),
        ((*GPU, "--", "true", "--workdir=gs://bucket/a"), "--workdir=gs://bucket/a is no folder: mount the bucket"),
        ((*GPU, "--name=Big_one", "--", "true"), "--name=Big_one cannot work"),
        ((*GPU, f"--name={'a' * 41}", "--", "true"), "use up to 40"),
    ],
)
def test_a_mistake_is_one_line(arguments, said):
    process = launch(*arguments)
    assert process.returncode == 2
    (line,) = process.stderr.splitlines()
    assert line.startswith("error: ") and said in line
