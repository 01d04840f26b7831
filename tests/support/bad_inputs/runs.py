"""Places that hold another run or cannot hold one, and machines that are too small."""

import json

from bad_inputs.world import Bad, Make, Options, World


def _begun(stage: str) -> Make:
    """A stage that another recipe has begun."""

    def make(world: World) -> Options:
        begun = {"schema_version": 2, "settings": {}, "inputs": {}}
        world.file(json.dumps(begun), f"run/{stage}/started.json")
        return []

    return make


BAD: dict[str, Bad] = {
    "another run's training": (_begun("train"), "holds another run's train stage"),
    "another run's reference": (_begun("reference"), "holds another run's reference stage"),
    "another run's pairs": (_begun("pairs"), "holds another run's prepare stage"),
    "a run below a file": (
        lambda w: [f"run_dir={w.file('', 'file')}/run"], "cannot write", "Not a directory"
    ),
    "a run that is a file": (lambda w: [f"run_dir={w.file('', 'file')}"], "cannot write"),
    "pairs below a file": (
        lambda w: [f"paths.pairs={w.file('', 'file')}/pairs"], "cannot write", "Not a directory"
    ),
    "more workers than CPUs": (
        ["train.num_workers=3", "ray.num_cpus=2"], "train.num_workers = 3 x 1 CPUs: the cluster has"
    ),
    "more CPUs than there are": (
        ["train.cpus_per_worker=5", "ray.num_cpus=2"], "train.num_workers = 1 x 5 CPUs"
    ),
    "no GPU": (["train.use_gpu=true", "ray.num_gpus=0"], "with a GPU each: the cluster has 0",
        "leave train.use_gpu out to train on CPUs"),
    "a reference over more GPUs": (
        ["reference.gpus_per_model=2", "ray.num_gpus=0"],
        "reference: 2 GPUs for one model, but the cluster has 0",
    ),
    "a scratch folder too long for sockets": (
        lambda w: [f"ray.temp_dir={w.folder}/{'x' * 90}"], "ray.temp_dir = "
    ),
}  # fmt: skip
