"""TRL's DPOTrainer as its own script would set it up; what benchmarks compare with."""

from pathlib import Path
from typing import Any


def dpo_trainer(
    directory: Path,
    rows: list[dict[str, str]],
    batch: int,
    output: Path,
    *,
    precompute: bool,
    max_steps: int = -1,
    precision: str = "bfloat16",
    checkpointing: bool = False,
    lora: int = 0,
    max_length: int = 4096,
    accumulation: int = 1,
    learning_rate: float = 1e-7,
    callbacks: list[Any] | None = None,
) -> Any:
    """The trainer over one epoch of the rows, or max_steps; SDPA, without checkpoints.

    Args:
        precompute: the reference's log-probabilities before, or in every step. precision: of
            the state: bfloat16, mixed or float32. lora: rank; 0 trains all weights.
    """
    import torch
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    on_gpu = torch.cuda.is_available()
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=dtype, attn_implementation="sdpa"
    ).to("cuda" if on_gpu else "cpu")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    adapters = {}
    if lora:
        from peft import LoraConfig

        adapters = {"peft_config": LoraConfig(r=lora, lora_alpha=2 * lora, task_type="CAUSAL_LM")}
    return trl.DPOTrainer(
        model=model,
        args=trl.DPOConfig(
            output_dir=str(output),
            precompute_ref_log_probs=precompute,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            max_length=max_length,
            max_steps=max_steps,
            num_train_epochs=1,
            learning_rate=learning_rate,
            bf16=on_gpu and precision != "float32",
            use_cpu=not on_gpu,
            gradient_checkpointing=checkpointing,
            logging_steps=1000,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=callbacks,
        **adapters,
    )
