"""Every kind of file that the program reads: where it lies, its format, and who reads it."""

from damage import readers as by
from damage.damages import ANY, JSON, LINES, PARQUET, SAFETENSORS, YAML
from damage.kind import Kind
from damage.other_kinds import OTHER_KINDS

_FEATURE = "reference/reference_hidden"
KINDS: dict[str, Kind] = {
    "manifest of pairs": Kind(
        "run/pairs/manifest.json", JSON, (by.status, by.plan, by.show), (by.report, by.run)
    ),
    "manifest of reference": Kind(
        "run/reference/manifest.json", JSON, (by.status, by.plan, by.check), (by.run,)
    ),
    "manifest of train": Kind(
        "run/train/manifest.json", JSON, (by.status, by.plan), (by.report, by.evaluate_again)
    ),
    "manifest of evaluate": Kind(
        "run/evaluation/manifest.json", JSON, (by.status, by.plan), (by.report, by.run)
    ),
    "manifest of execute": Kind(
        "run/evaluation/code/manifest.json", JSON, (by.status,), (by.report,)
    ),
    "manifest of sample": Kind("run/sample/manifest.json", JSON, (by.status,)),
    "manifest of a checkpoint's evaluation": Kind(
        "run/evaluation/checkpoints/step-00000002/manifest.json", JSON, (), (by.look_at_gates,)
    ),
    "manifest of a sweep": Kind("sweep/manifest.json", JSON, (by.sweep_status,), (by.tune,)),
    "start of pairs": Kind("run/pairs/started.json", JSON, (by.status, by.plan), (by.run,)),
    "start of reference": Kind("half/reference/started.json", JSON, (by.status_half,), (by.train,)),
    "start of train": Kind("half/train/started.json", JSON, (by.status_half,), (by.train,)),
    "start of evaluate": Kind("half/evaluation/started.json", JSON, (), (by.evaluate,)),
    "start of sample": Kind("half/sample/started.json", JSON, (by.status_half,), (by.sample,)),
    "start of a sweep": Kind("sweep/started.json", JSON, (by.sweep_status,), (by.tune,)),
    "definition of a sweep": Kind("sweep/sweep.json", JSON, (by.sweep_status,), (by.tune,)),
    "configuration": Kind("run/config.yaml", YAML, (by.status, by.timeline), (by.report,)),
    "recipe": Kind("run.yaml", YAML, (by.plan,), is_input=True),
    "sweep file": Kind("sweep.yaml", YAML, (), (by.tune,), is_input=True),
    "configuration of a trial": Kind("sweep/trials/0001-*/config.yaml", YAML, (), (by.tune,)),
    "trial": Kind("sweep/trials/0001-*/trial.json", JSON, (by.sweep_status,)),
    "trials": Kind("sweep/trials.json", JSON, (), (by.tune,)),
    "trial of an interrupted sweep": Kind(
        "resumed/trials/0001-*/trial.json", JSON, (), (by.resume,)
    ),
    "start of an interrupted sweep": Kind("resumed/started.json", JSON, (), (by.resume,)),
    "Ray Tune's trials": Kind("resumed/.ray/sweep/experiment_state-*", JSON, (), (by.resume,)),
    "Ray Tune's settings": Kind("resumed/.ray/sweep/tuner.pkl", ANY, (), (by.resume,)),
    "times": Kind("run/timeline/prepare-*.json", JSON, (by.timeline,), (by.report,)),
    "metrics": Kind(
        "run/train/metrics/part-00000003-*", LINES, (by.watch,), (by.report,)
    ),
    "metrics of a training under way": Kind(
        "half/train/metrics/part-00000003-*", LINES, (), (by.train,)
    ),
    "attempt": Kind("half/train/attempt.json", JSON, (), (by.train,)),
    "memory": Kind("half/train/memory.json", JSON, (by.status_half,), (by.train,)),
    "failure": Kind("half/train/failure-0.json", JSON, (by.status_half,), (by.train,)),
    "state of a checkpoint": Kind(
        "half/train/checkpoints/step-00000004/state.json", JSON, (by.status_half,), (by.train,)
    ),
    "shard of a checkpoint": Kind(
        "half/train/checkpoints/step-00000004/shard-*", SAFETENSORS, (), (by.train,)
    ),
    "state of an evaluated checkpoint": Kind(
        "run/train/checkpoints/step-00000004/state.json", JSON, (), (by.schedule,)
    ),
    "pairs": Kind("run/pairs/train-00000.parquet", PARQUET, (by.show,)),
    "pairs in training": Kind("half/pairs/train-00000.parquet", PARQUET, (), (by.train,)),
    "lengths": Kind("run/pairs/lengths/train.parquet", PARQUET, (by.plan,)),
    "lengths in training": Kind("half/pairs/lengths/train.parquet", PARQUET, (), (by.train,)),
    "rejected rows": Kind("run/pairs/rejected_rows.jsonl", LINES, (by.show,)),
    "marker": Kind("half/reference/shards/reference_logps/train-00000.json", JSON, (), (by.train,)),
    "features": Kind(f"run/{_FEATURE}/train-00000.parquet", PARQUET, (by.check,)),
    "features in training": Kind(f"half/{_FEATURE}/train-00000.parquet", PARQUET, (), (by.train,)),
    "head": Kind("run/reference/lm_head.safetensors", SAFETENSORS, (by.check,)),
    "head's settings": Kind("run/reference/lm_head.json", JSON, (by.check,)),
    "head in training": Kind("half/reference/lm_head.safetensors", SAFETENSORS, (), (by.train,)),
    "parts of an evaluation": Kind("half/evaluation/parts/scored_pair*", JSON, (), (by.evaluate,)),
    "token weights": Kind("half/evaluation/token_weights/*0.parquet", PARQUET, (), (by.evaluate,)),
    "parts of samples": Kind("half/sample/parts/*", JSON, (), (by.sample,)),
    "samples": Kind("run/evaluation/samples/samples.jsonl", LINES, (by.watch,), (by.report,)),
    "tokens": Kind("run/evaluation/samples/tokens.jsonl", LINES, (by.watch,), (by.report,)),
    "programs": Kind("run/evaluation/samples/code.jsonl", LINES, (), (by.execute,)),
    "parts of verdicts": Kind("run/evaluation/code/parts/*", JSON, (), (by.execute,)),
    "answers of a judge": Kind("half/judge/verdicts/*", JSON, (by.judge,)),
    "compiled code": Kind("half/compiled/*.bin", ANY, (by.compiled,)),
    "hashes of files": Kind("cache/file_hashes.json", JSON, (by.cached,)),
    "a fact": Kind("cache/facts/*.json", JSON, (by.cached,)),
    "the user's key": Kind("cache/key", ANY, (by.cached,)),
    "history": Kind("run/evaluation/history/step-00000002.parquet", PARQUET, (), (by.report,)),
    "gates": Kind(
        "run/evaluation/checkpoints/step-00000002/gates.json", JSON, (), (by.report,)
    ),
    "last tick": Kind("run/evaluation/schedule/state.json", JSON, (), (by.schedule,)),
    "claim": Kind("run/evaluation/claims/step-00000004.json", JSON, (), (by.schedule,)),
    "trained model": Kind(
        "run/train/model/model.safetensors", SAFETENSORS, (), (by.evaluate_again,)
    ),
    "trained model's configuration": Kind(
        "run/train/model/config.json", JSON, (), (by.evaluate_again,)
    ),
    "trained tokenizer": Kind("run/train/model/tokenizer.json", JSON, (), (by.evaluate_again,)),
    "masks": Kind("run/train/masks/masks.safetensors", SAFETENSORS, (), (by.evaluate_again,)),
    "masks' configuration": Kind(
        "run/train/masks/mask_config.json", JSON, (), (by.evaluate_again,)
    ),
    **{
        f"starting model's {name}": Kind(
            f"model/{name}", damages, (by.of_model, by.plan), (by.load_model,), is_input=True
        )
        for name, damages in {
            "model.safetensors": SAFETENSORS, "config.json": JSON, "generation_config.json": JSON,
            "tokenizer.json": JSON, "tokenizer_config.json": JSON, "chat_template.jinja": ANY,
        }.items()
    },
    "adapter": Kind(
        "adapter/adapter_model.safetensors", SAFETENSORS, (by.of_adapter,), (by.load_adapter,),
        is_input=True,
    ),
    "adapter's configuration": Kind(
        "adapter/adapter_config.json", JSON, (by.of_adapter,), (by.load_adapter,), is_input=True
    ),
    "template of a recipe": Kind("template.jinja", ANY, (by.of_template,), is_input=True),
    "tasks of the code benchmark": Kind(
        "tasks.jsonl", LINES, (by.of_files,), (by.execute,), is_input=True
    ),
    "key words": Kind("words.txt", ANY, (by.of_files,), (by.evaluate_again,), is_input=True),
    **{
        f"source {name}": Kind(name, damages, (by.of_source(name),), is_input=True)
        for name, damages in {
            "pairs.jsonl": LINES, "pairs.json": ANY, "pairs.jsonl.gz": ANY,
            "pairs.parquet": PARQUET, "pairs.csv": ANY,
        }.items()
    },
    **OTHER_KINDS,
}  # fmt: skip
