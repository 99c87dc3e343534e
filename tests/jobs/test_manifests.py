"""The manifests of jobs/manifests: valid by KubeRay's and Ray's own schemas, and true to each other.

No cluster of Kubernetes is at hand here: what a schema cannot know is checked against the code and the image.
"""

import copy
import json
import os
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml

from configs.load import load_config
from jobs import cli
from jobs.checks import check_workers
from jobs.launching.environment import worker_environment
from jobs.submission.submit import STOP_WAIT_S

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = ROOT / "jobs" / "manifests"
SCHEMA = Path(os.environ.get("MRRCNN_RAYJOB_SCHEMA", ROOT.parent / "shared/schemas/rayjob.v1.schema.json"))
RAYJOBS = ["rayjob-cpu.yaml", "rayjob-gpu.yaml"]
RAY_UPS = ["ray-up-cpu.yaml", "ray-up-gpu.yaml"]
UNITS = {"Gi": 1024**3, "Mi": 1024**2}


def documents(name):
    return [item for item in yaml.safe_load_all((MANIFESTS / name).read_text()) if item]


def everything():
    return [item for path in sorted(MANIFESTS.glob("*.yaml")) for item in documents(path.name)]


def size(text):
    return int(text[:-2]) * UNITS[text[-2:]]


def pods(job):
    cluster = job["spec"]["rayClusterSpec"]
    return [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


@pytest.fixture(params=RAYJOBS)
def rayjob(request):
    [job] = documents(request.param)
    return job


def strict(schema):
    """Return a schema that refuses unknown fields, which Kubernetes would drop without a word."""
    if isinstance(schema, dict):
        schema = {key: strict(value) for key, value in schema.items()}
        named = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
        if named and not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
    return [strict(item) for item in schema] if isinstance(schema, list) else schema


@pytest.mark.skipif(
    not SCHEMA.is_file(), reason="KubeRay's RayJob schema is not at hand (MRRCNN_RAYJOB_SCHEMA)"
)
def test_rayjobs_are_valid_by_kuberays_schema_without_unknown_fields(rayjob):
    jsonschema = pytest.importorskip("jsonschema")
    checker = jsonschema.Draft202012Validator(strict(json.loads(SCHEMA.read_text())["properties"]["spec"]))
    assert [error.message for error in checker.iter_errors(rayjob["spec"])] == []
    misspelt = {**rayjob["spec"], "backofLimit": 3}
    assert "backofLimit" in next(checker.iter_errors(misspelt)).message


def test_what_a_rayjob_starts_is_a_command_of_ours_with_legal_workers(rayjob, monkeypatch):
    program, verb, *arguments = shlex.split(rayjob["spec"]["entrypoint"])
    assert program == "mrrcnn" and verb in ("run", "demo")
    asked = {}
    monkeypatch.setattr("jobs.demo.run_demo", lambda *given: asked.update(zip(DEMO, given, strict=True)))
    monkeypatch.setattr("jobs.verbs.run_config", lambda *given: asked.update(zip(RUN, given, strict=True)))
    with pytest.raises(SystemExit) as ended:
        cli.main([verb, *arguments])
    assert not ended.value.code
    config = asked.get("config", "/app/configs/demo.yaml")
    config = load_config(ROOT / Path(config).relative_to("/app"), asked["overrides"] or ())
    check_workers(config, asked["workers"], "ray", asked.get("min_workers"))
    assert asked["workers"] <= room(rayjob)
    assert asked["address"] == "auto"
    data = [value.split("=")[1] for value in asked["overrides"] or ()]
    assert all(Path(path).is_relative_to("/data") for path in [asked["run_dir"], *data])


RUN = ("config", "overrides", "run_dir", "workers", "launcher", "address", "redo", "min_workers")
DEMO = ("run_dir", "seed", "overrides", "workers", "launcher", "address")


def room(job):
    """Return how many workers the cluster holds: one a GPU, else one a core, none on the head."""
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    found = 0
    for group in cluster["workerGroupSpecs"]:
        machine = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        found += group["replicas"] * int(machine.get("nvidia.com/gpu", machine["cpu"]))
    return found


def test_an_entrypoint_is_one_plain_command(rayjob):
    """KubeRay pastes it unquoted into a shell: what follows a `&&` would run in the pod that submits."""
    page = (ROOT / "docs" / "cluster.md").read_text()
    shown = re.findall(r"^(env -C .*?)\n```", page, re.MULTILINE | re.DOTALL)
    assert len(shown) == 1 and "mrrcnn sweep" in shown[0]
    for command in (rayjob["spec"]["entrypoint"], *shown):
        assert not set(command) & set("&;|<>$`\"'()#*\\"), command


def test_a_rank_on_cpus_has_its_one_core_for_threads_whatever_the_heads_machine_has(monkeypatch):
    [job] = documents("rayjob-cpu.yaml")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)))
    for pod in pods(job):
        found = {item["name"]: item.get("value") for item in pod["containers"][0]["env"]}
        monkeypatch.setenv("OMP_NUM_THREADS", found["OMP_NUM_THREADS"])
        # What the driver, in the head's pod, gives the ranks; `room` counts one a core.
        assert worker_environment(room(job))["OMP_NUM_THREADS"] == "1"


def test_a_failed_job_is_tried_again_and_a_finished_one_leaves_no_cluster(rayjob):
    # Each is a cluster, also for an error that a retry only repeats.
    assert 3 <= rayjob["spec"]["backoffLimit"] <= 5
    assert rayjob["spec"]["shutdownAfterJobFinishes"]


def test_shared_memory_fits_into_the_containers_memory_and_hosts_rays_object_store(rayjob):
    for pod in pods(rayjob):
        [shm] = [volume["emptyDir"] for volume in pod["volumes"] if volume["name"] == "shm"]
        assert shm["medium"] == "Memory"
        assert {"name": "shm", "mountPath": "/dev/shm"} in pod["containers"][0]["volumeMounts"]
        limit = size(pod["containers"][0]["resources"]["limits"]["memory"])
        assert 1024**3 < size(shm["sizeLimit"]) <= limit / 2


def test_the_grace_period_holds_a_checkpoint_and_the_notice_before_it(rayjob):
    for pod in pods(rayjob):
        assert pod["terminationGracePeriodSeconds"] > STOP_WAIT_S
    [worker] = pods(rayjob)[1:]
    told = worker["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1]
    deadline, pause = (int(re.search(rf"{word}[ =](\d+)", told)[1]) for word in ("seconds", "sleep"))
    assert pause < deadline < worker["terminationGracePeriodSeconds"]
    head = {item["name"]: item.get("value") for item in pods(rayjob)[0]["containers"][0]["env"]}
    assert head["RAY_JOB_STOP_WAIT_TIME_S"] == str(STOP_WAIT_S)


def test_a_pod_that_ends_tells_ray_in_words_that_this_ray_knows(rayjob):
    """Ray promises nothing about this command, and a pod's end is a bad place to find out."""
    from ray.scripts.scripts import drain_node

    [worker] = pods(rayjob)[1:]
    told = worker["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1]
    ray, verb, *words = shlex.split(told.replace("$RAY_ADDRESS", "10.0.0.1:6379").partition(";")[0])
    assert (ray, verb) == ("ray", drain_node.name)
    given = drain_node.make_context(verb, words).params
    assert given["node_id"] is None and given["deadline_remaining_seconds"] > 0


def test_ray_and_the_images_are_of_this_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    ray = re.search(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
    for name in RAYJOBS:
        assert documents(name)[0]["spec"]["rayClusterSpec"]["rayVersion"] == ray
    texts = "".join(path.read_text() for path in MANIFESTS.glob("*.yaml"))
    built = set(re.findall(r"docker build -t (\S+)", (ROOT / "Dockerfile").read_text()))
    assert built == {f"mrrcnn:{version}", f"mrrcnn:{version}-gpu"}
    assert set(re.findall(r"image: (\S+)", texts)) == built


def test_every_claim_secret_and_server_that_is_named_is_made_or_explained():
    found = json.dumps(everything())
    made = {item["metadata"]["name"] for item in everything() if item.get("kind") == "PersistentVolumeClaim"}
    assert set(re.findall(r'"claimName": "([^"]+)"', found)) == made
    page = (ROOT / "docs" / "cluster.md").read_text()
    named = set(re.findall(r'"secretRef": \{"name": "([^"]+)"', found))
    for secret in named | set(re.findall(r'"secretName": "([^"]+)"', found)):
        assert f"kubectl create secret generic {secret}" in page
    services = {item["metadata"]["name"] for item in everything() if item.get("kind") == "Service"}
    assert set(re.findall(r'"value": "http://([\w-]+):5000"', found)) == services
    for path in MANIFESTS.glob("*.yaml"):
        assert path.name in page


def test_no_manifest_opens_a_cluster_without_a_token_or_as_root(rayjob):
    assert rayjob["spec"]["rayClusterSpec"]["authOptions"]["mode"] == "token"
    for pod in pods(rayjob):
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"]
    for name in RAY_UPS:
        [cluster] = documents(name)
        assert "--env=RAY_AUTH_MODE=token" in cluster["docker"]["run_options"]
        # What `ray up` does in its containers needs root, which the image is not.
        assert "--user=0" in cluster["docker"]["run_options"]
        assert "--dashboard-host=127.0.0.1" in " ".join(cluster["head_start_ray_commands"])


@pytest.mark.parametrize("name", RAY_UPS)
def test_ray_up_takes_the_cluster_file(name):
    util = pytest.importorskip("ray.autoscaler._private.util")
    [cluster] = documents(name)
    util.validate_config(util.prepare_config(copy.deepcopy(cluster)))
    misspelt = copy.deepcopy(cluster)
    misspelt["docker"]["run_option"] = []
    with pytest.raises(Exception, match="run_option"):
        util.validate_config(util.prepare_config(misspelt))
    gpus = "--gpus=all" in cluster["docker"]["run_options"]
    assert gpus == name.endswith("gpu.yaml") == cluster["docker"]["image"].endswith("-gpu")
    text = (MANIFESTS / name).read_text()
    workers, least = re.search(r"--workers (\d+) --min-workers (\d+)", text).groups()
    assert int(least) < int(workers)


def test_the_image_has_what_kuberay_and_ray_up_need_of_it():
    text = (ROOT / "Dockerfile").read_text()
    installed = re.search(r"--no-install-recommends (.*?)\n &&", text, re.DOTALL)[1].split()
    assert {"wget", "rsync", "openssh-client", "g++", "python3-venv"} <= set(installed)
    # KubeRay's login shell reads the profile and not ENV.
    assert "PATH=/opt/mrrcnn/bin:$PATH' > /etc/profile.d/mrrcnn.sh" in text
    copied = {line.split()[1] for line in text.splitlines() if line.startswith("COPY ") and "." not in line}
    assert copied == {"configs", "ops", "shards", "pipeline", "jobs"}
    kept = (ROOT / ".dockerignore").read_text().split()
    assert all(f"!{name}" in kept for name in copied)


def test_the_image_is_nobodys_root_and_whoever_runs_it_has_a_home_and_a_place_to_work(rayjob):
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    told = [line.split() for line in lines if line.startswith(("USER", "WORKDIR", "ENV HOME", "RUN mkdir"))]
    assert told[-1] == ["USER", "1000"] and told[-2] == ["WORKDIR", "/data"]
    # As root before it: all that is installed is read-only to whom it runs as.
    assert [words[0] for words in told].count("USER") == 1
    assert lines.index("USER 1000") > lines.index("RUN chmod -R a+rX /app")
    [home] = [words[1].removeprefix("HOME=") for words in told if words[0] == "ENV"]
    [made] = [words for words in told if words[0] == "RUN"]
    assert " ".join(made[1:]) == f"mkdir -p {home} /data && chmod 1777 {home} /data"
    assert {pod["securityContext"]["runAsUser"] for pod in pods(rayjob)} == {1000}


def test_docker_stop_is_heard_by_what_the_pages_start():
    pages = [ROOT / "Dockerfile", ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    started = [line for page in pages for line in page.read_text().splitlines() if "docker run -" in line]
    assert len(started) >= 2 and all(" --init " in line for line in started)
