"""What other trainers call the keys of a recipe: each is answered with the key that is meant."""

# Name -> key. Some are keys of other sections here: what most people mean comes first.
OTHER_NAMES = {
    name: key
    for key, names in {
        "run_dir": "output_dir output outdir out_dir out save_dir save_path log_dir",
        "model.name_or_path": (
            "model_name model_name_or_path model_path base_model model_id pretrained "
            "pretrained_model policy policy_model start_model checkpoint"
        ),
        "model.reference": (
            "ref_model reference_model ref_model_name_or_path ref_model_path reference_path"
        ),
        "model.tokenizer": "tokenizer_name tokenizer_path tokenizer_name_or_path",
        "data.sources": (
            "dataset datasets dataset_name dataset_path data_path data_file data_files train_file "
            "train_files train_data train_dataset train_path source pairs_file"
        ),
        "data.validation": (
            "validation_file validation_data val_file val_data valid_file eval_dataset eval_file "
            "eval_data dev_file"
        ),
        "data.test": "test_file test_data test_dataset",
        "data.test_fraction": "test_size test_split_ratio",
        "data.validation_fraction": "val_size validation_size validation_split val_split eval_size",
        "data.max_tokens": "max_length max_seq_length max_seq_len cutoff_len context_length",
        "data.max_prompt_tokens": "max_prompt_length max_prompt_len",
        "data.max_response_tokens": (
            "max_completion_length max_response_length max_target_length max_output_length"
        ),
        "data.max_train_pairs": "max_samples max_train_samples limit",
        "objective.name": "loss loss_type method algorithm algo trainer rl_algorithm",
        "objective.beta": "beta dpo_beta temperature_beta",
        "objective.label_smoothing": "label_smoothing_factor dpo_label_smoothing",
        "mask.kind": "mask_kind mask_type mask_name token_mask",
        "train.learning_rate": "lr learning_rate learning-rate learningrate optimizer_lr",
        "train.global_batch_size": (
            "batch_size global_batch_size bs train_batch_size total_batch_size "
            "per_device_train_batch_size per_device_batch_size"
        ),
        "train.micro_batch_tokens": (
            "gradient_accumulation_steps grad_accum accumulate_grad_batches micro_batch_size "
            "micro_batch"
        ),
        "train.epochs": "epoch epochs num_epochs num_train_epochs n_epochs max_epochs",
        "train.max_steps": (
            "steps max_steps num_steps max_train_steps num_train_steps total_steps iterations"
        ),
        "train.weight_decay": "wd",
        "train.warmup_fraction": "warmup_ratio warmup warmup_steps warmup_pct",
        "train.schedule": "lr_scheduler lr_scheduler_type lr_schedule",
        "train.max_grad_norm": "grad_clip gradient_clip gradient_clip_val clip_grad_norm grad_norm",
        "train.precision": "bf16 fp16 dtype torch_dtype mixed_precision",
        "train.seed": "seed random_seed",
        "train.validate_every": "eval_steps validation_steps val_check_interval eval_every",
        "train.checkpoint_every": "save_steps save_every checkpoint_steps checkpointing_steps",
        "train.keep_checkpoints": "save_total_limit",
        "train.selection": "load_best_model_at_end early_stopping metric_for_best_model",
        "train.trackers": "report_to logger loggers tracker wandb",
        "train.tracker_project": "wandb_project project project_name",
        "train.num_workers": (
            "workers gpus n_gpus num_processes nproc nproc_per_node devices world_size"
        ),
        "train.use_gpu": "cuda device gpu use_cuda no_cuda",
        "train.lora": "peft use_peft use_lora peft_config lora_config",
        "train.lora.rank": "lora_r lora_rank r",
        "train.lora.alpha": "lora_alpha",
        "train.lora.dropout": "lora_dropout",
        "train.lora.target_modules": "lora_target_modules",
        "evaluate.generation.max_new_tokens": "max_new_tokens",
        "evaluate.generation.temperature": "temperature",
        "evaluate.benchmarks": "metrics benchmark eval_tasks",
    }.items()
    for name in names.split()
}


def other_name(key: str) -> str | None:
    """The key that an unknown one means by another trainer's name; None if it is no such name.

    Below a section of ours a name means a key of that section alone.
    """
    section, _, last = key.rpartition(".")
    meant = OTHER_NAMES.get(last.lower())
    if meant is None or (section and not meant.startswith(f"{section.split('.')[0]}.")):
        return None
    return meant
