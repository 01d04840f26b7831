"""Recipes that say what nobody can do: files, models and machines do not matter."""

from bad_inputs.world import Bad, World

WEIGHTED = ["objective.name=weighted"]
SPARSE = ["objective.name=sparsepo", "mask.kind=learned"]
_ENDPOINT = "evaluate.judge={kind: openai, model: x, base_url: "


def _interpolation(world: World) -> list[str]:
    return ["evaluate.key_words=${oc.env:HOME}"]


def _long(world: World) -> list[str]:
    return [f"run_dir={world.folder}/{'x' * 300}"]


def _deep(world: World) -> list[str]:
    return [f"paths.pairs={world.folder}/{'x/' * 2500}"]


BAD: dict[str, Bad] = {
    "a key with a slip": (
        ["train.learning_rat=1"],
        "unknown config key 'train.learning_rat': did you mean 'train.learning_rate'?",
    ),
    "a slip in a tagged section": (
        ["objective={name: dpo, betta: 1}"], "did you mean 'objective.beta'?"
    ),
    "fine-tuning's own rate in a fine-tuning recipe": (
        ["objective.name=sft", "sft.learning_rate=1e-4"],
        "sft.learning_rate = 0.0001 with objective.name=sft: it is for `sparsepo sft` of a "
        "preference recipe; set train.learning_rate",
    ),
    "a section with a slip": (["trian.epochs=1"], "unknown config key 'trian'"),
    "another trainer's name": (["lr=1e-5"], "config key 'lr': train.learning_rate is meant"),
    "another trainer's name in a section": (
        ["train={batch_size: 8}"], "'train.batch_size': train.global_batch_size is meant"
    ),
    "a key without its section": (
        ["label_smoothing=0.1"], "'label_smoothing': objective.label_smoothing is meant"
    ),
    "a data set by another name": (
        ["dataset=a.jsonl"], "data.sources is meant, write data.sources=[{path: a.jsonl}]"
    ),
    "a source as text": (
        ["data.sources=a.jsonl"], "it is a list, write data.sources=[{path: a.jsonl}]"
    ),
    "a source in a list as text": (
        ["data.sources=[a.jsonl]"], "data.sources[0].path is meant, write data.sources[0].path=a.js"
    ),
    "a model as text": (["model=a/b"], "= 'a/b': model.name_or_path is meant"),
    "an objective as text": (["objective=ipo"], "objective.name is meant, write objective.name=i"),
    "one tracker": (["train.trackers=wandb"], "it is a list, write train.trackers=[wandb]"),
    "a section as a number": (["train=3"], "train = 3: it has keys of its own: global_batch_size,"),
    "an override that is no YAML": (
        ["train.epochs=[1"], "override 'train.epochs=[1' is not valid YAML: line 1, column 3: expec"
    ),
    "below its range": (
        ["train.learning_rate=-1"], "train.learning_rate = -1: input should be greater than 0"
    ),
    "no number": (["train.epochs=many"], "train.epochs = 'many': input should be a valid number"),
    "above its range": (
        ["data.test_fraction=1.5"], "data.test_fraction = 1.5: input should be less than 1"
    ),
    "no objective of that name": (["objective.name=ppo"], "objective.name = 'ppo': allowed are"),
    "letters in the wrong order": (["objective.name=dop"], "'sum'; did you mean 'dpo'?"),
    "an objective without a name": (["objective={}"], "objective: needs the key 'name': one of"),
    "a mask that the objective does not take": (
        ["mask.kind=learned"], "mask.kind=learned with objective.name=dpo: allowed is none"
    ),
    "another mask that it does not take": (
        ["mask.kind=random"], "mask.kind=random with objective.name=dpo: allowed is none"
    ),
    "an objective without its mask": (
        ["objective.name=sparsepo"],
        "mask.kind=none with objective.name=sparsepo: allowed is learned",
    ),
    "mapo with no mask": (
        ["objective.name=mapo", "mask.kind=none"],
        "mask.kind=none with objective.name=mapo: allowed is activation or external or random",
    ),
    "no sources": (["data.sources=[]"], "data.sources = []"),
    "an override without a value": (["train.epochs"], "override 'train.epochs': write it as key=v"),
    "no such mode": (
        ["reference.mode=sometimes"],
        "reference.mode = 'sometimes': input should be 'auto', 'stored' or 'online'",
    ),
    "a key of another objective": (
        ["objective={name: dpo, l1_kl: 1}"],
        "config key 'objective.l1_kl' is none of objective.name=dpo",
    ),
    "a key that ipo has not": (
        ["objective.name=ipo", "objective.label_smoothing=0.1"],
        "'objective.label_smoothing' is none of objective.name=ipo",
    ),
    "a resolver": (_interpolation, "evaluate.key_words: a resolver"),
    "a run_dir that no file can be called": (_long, "run_dir = ", "255"),
    "a store too deep for a path": (_deep, "paths.pairs = ", "4095"),
    "odpo with every gap": (
        ["objective.name=odpo"],
        "data.min_gap=0.0 with objective.name=odpo: must be at least objective.min_gap=0.001",
    ),
    "a sum of nothing": (["objective={name: sum, of: []}"], "objective.of = []"),
    "a sum without preferences": (
        ["objective={name: sum, of: [{name: sft, weight: 1}]}"],
        "of names sft alone: a sum needs a term with preferences",
    ),
    "a term without a weight": (
        ["objective={name: sum, of: [{name: dpo}]}"],
        "config key 'objective.of[0].weight' is required",
    ),
    "a sum within a sum": (
        ["objective={name: sum, of: [{weight: 1, name: sum, of: []}]}"],
        "objective.of[0].name = 'sum': allowed are",
    ),
    "terms of which no mask serves all": (
        ["objective={name: sum, of: [{weight: 1, name: mapo}, {weight: 1, name: sparsepo}]}"],
        "no kind of mask serves all terms of the sum: mapo, sparsepo",
    ),
    "labelled rows in a sum of losses on pairs": (
        ["objective={name: sum, of: [{weight: 1, name: kto}]}"],
        "objective.of[0].name = 'kto': allowed are",
    ),
    "a slip in a term": (
        ["objective={name: sum, of: [{weight: 1, name: dpo, betta: 1}]}"],
        "did you mean 'objective.of[0].beta'?",
    ),
    "tis_dpo without scorers": (
        ["objective.name=tis_dpo"], "set model.positive_scorer or model.negative_scorer"
    ),
    "a producer without its scorer": (
        [*WEIGHTED, "mask.kind=token_reward"],
        "mask.kind=token_reward needs the feature scorer_log_ratios of the reference stage: set "
        "model.positive_scorer or model.negative_scorer",
    ),
    "a producer with one scorer of two": (
        [*WEIGHTED, "mask.kind=contrast", "model.positive_scorer=a"],
        "mask.kind=contrast needs the feature negative_logps of the reference stage: set "
        "model.negative_scorer",
    ),
    "a feature without its scorer": (
        ["reference.features=[positive_logps]"],
        "reference.features needs the feature positive_logps of the reference stage: set "
        "model.positive_scorer",
    ),
    "weights that may be negative where none may be": (
        ["objective.name=mapo", "mask.kind=token_reward", "model.positive_scorer=a"],
        "mask.kind=token_reward with objective.name=mapo: allowed is activation or external or",
    ),
    "a threshold that is no number": (
        [*WEIGHTED, "mask.kind=segment", "mask.theta=.inf"], "mask.theta = inf"
    ),
    "no token of the least decided": (
        [*WEIGHTED, "mask.kind=entropy", "mask.fraction=0"],
        "mask.fraction = 0: input should be greater than 0",
    ),
    "states that nobody transports": (
        [*WEIGHTED, "mask={kind: transport, states: both}"],
        "mask.states = 'both': input should be 'policy' or 'reference'",
    ),
    "an order of limits": (
        [
            "objective.name=tis_dpo",
            "objective.low=3",
            "model.positive_scorer=a",
            "model.negative_scorer=b",
        ],
        "low=3.0, high=1.5",
    ),
    "a producer without its scorers": (
        [*WEIGHTED, "mask.kind=exp_ratio"],
        "mask.kind=exp_ratio needs the feature scorer_log_ratios of the reference stage: set "
        "model.positive_scorer or model.negative_scorer",
    ),
    "weights of an objective that takes none": (
        ["mask.kind=confidence"], "mask.kind=confidence with objective.name=dpo: allowed is none"
    ),
    "a strength of weights from the data": (
        ["objective.name=tis_dpo", "objective.source=external", "objective.mu=2"],
        "weights from the data are taken as they are",
    ),
    "a clamp of no log ratios": (
        [*WEIGHTED, "objective.reference_free=true", "objective.log_ratio_clamp=[-1, 1.5]"],
        "there are no log ratios to clamp",
    ),
    "a penalty on what is not learned": (
        [*WEIGHTED, "mask.kind=confidence", "objective.l1_reward=0.1"],
        "objective.l1_reward=0.1 with mask.kind=confidence: a penalty is for weights that are",
    ),
    "a penalty on no KL": (
        [*WEIGHTED, "mask.kind=learned", "objective.l1_kl=0.1"], "l1_kl=0.1 with alpha=0"
    ),
    "a mask of no KL": (
        [*WEIGHTED, "mask.kind=random", "mask.terms=kl"],
        "mask.terms=kl with objective.alpha=0: there is no KL",
    ),
    "a second mask of no KL": (
        [*WEIGHTED, "mask.kind=learned", "mask.sharing=independent"], "set mask.terms=reward"
    ),
    "a side that no pair has": (
        [*WEIGHTED, "mask.kind=random", "mask.sides=left"], "mask.sides = 'left'"
    ),
    "an order of bounds": (
        [*WEIGHTED, "objective.log_ratio_clamp=[1, -1]"], "must be finite with low < high"
    ),
    "a loss that there is not": (
        ["objective.name=dpo", "objective.loss=hings"],
        "objective.loss = 'hings': input should be 'sigmoid',",
    ),
    "smoothing that the loss would ignore": (
        ["objective.name=dpo", "objective.loss=hinge", "objective.label_smoothing=0.1"],
        "label_smoothing=0.1 with loss=hinge, which reads none: leave it out",
    ),
    "a loss without the smoothing that it needs": (
        ["objective.name=dpo", "objective.loss=exo"],
        "loss=exo needs label_smoothing > 0; its paper's is 0.001",
    ),
    "a divergence that the loss cannot take": (
        ["objective.name=wpo", "objective.loss=nca", "objective.divergence=js"],
        "divergence=js with loss=nca, which reads more than the difference of both responses",
    ),
    "an alpha that no divergence reads": (
        ["objective.name=dpo", "objective.divergence_alpha=0.5"],
        "divergence_alpha=0.5 with divergence=reverse, which reads none",
    ),
    "a weight of the rejected response above 1": (
        ["objective.name=dpo_shift", "objective.lambda_end=2"], "objective.lambda_end = 2"
    ),
    "all pairs dropped": (
        ["objective.name=beta_dpo", "objective.drop_fraction=1"], "objective.drop_fraction = 1"
    ),
    "a mixer that is not there": (
        [*SPARSE, "mask.mixer_activation=none", "mask.architecture=ml_last"], "has no mixer"
    ),
    "a KL that nobody approximates": (
        ["reference.topk=8"], "objective.name=dpo has no KL to approximate"
    ),
    "a KL that is exact already": (
        [*SPARSE, "mask.architecture=simple_last", "reference.topk=8"],
        "already give the exact KL",
    ),
    "states that nobody stores": (
        ["reference.layers_dtype=int8"], "no states of all layers are stored"
    ),
    "a number of tokens that is missing": (
        ["reference.features=[reference_topk]"], "say how many tokens with reference.topk"
    ),
    "no token at all": (["reference.topk=0"], "reference.topk"),
    "an activation mask of nothing": (
        ["reference.features=[activation_mask]"], "say which with mask.kind=activation"
    ),
    "the best of no pairs": (
        ["train.selection.keep_best=1", "train.validate_every=1"], "set data.validation_fraction"
    ),
    "patience without validations": (
        ["train.selection.patience=2"], "selection chooses between validations: set train.validate"
    ),
    "more workers at least than at most": (
        ["train.min_workers=3", "train.num_workers=2"],
        "min_workers = 3: must be at most num_workers = 2",
    ),
    "no such tracker": (
        ["train.trackers=[comet]"], "= 'comet': input should be 'tensorboard', 'wandb' or 'mlflow'"
    ),
    "a part of a GPU for two": (
        ["ray.gpus_per_run=0.5", "train.num_workers=2"], "a fraction of one GPU is for one worker"
    ),
    "a dialogue without a judge": (
        ["evaluate.benchmarks=[dialogue]"], "benchmarks names dialogue: set evaluate.judge"
    ),
    "code without tasks": (
        ["evaluate.benchmarks=[code]"], "benchmarks names code: set evaluate.code"
    ),
    "a leaderboard without tasks": (
        ["evaluate.benchmarks=[leaderboard]"],
        "benchmarks names leaderboard: set evaluate.leaderboard",
    ),
    "a temperature twice": (["evaluate.temperatures=[0.5, 0.5]"], "one of them occurs twice"),
    "no such judge": (
        ["evaluate.judge={kind: oracle}"], "evaluate.judge.kind = 'oracle': allowed are"
    ),
    "an address of no web server": (
        [f"{_ENDPOINT}ftp://x}}"], "evaluate.judge.base_url = 'ftp://x'"
    ),
    "a slip in a judge": (
        [f"{_ENDPOINT}'http://x', max_trys: 1}}"], "did you mean 'evaluate.judge.max_tries'"
    ),
    "a gate without a limit": (["schedule.gates=[{metric: x}]"], "the gate on x has no limit"),
    "a gate without a release": (
        ["schedule.gates=[{metric: x, max_drop: 0.1}]"], "set schedule.release"
    ),
    "nothing held out": (["data.test_fraction=0"], "needs held-out pairs"),
    "nothing validated": (
        ["evaluate.split=validation"], "data.validation_fraction = 0 keeps none back"
    ),
}  # fmt: skip
