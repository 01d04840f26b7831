"""What an evaluation needs besides the trained model, and of it: known before anything runs."""

from pipelines.errors import UserError
from pipelines.evaluate.facts import read_key_words
from pipelines.evaluate.held_out import check_held_out
from pipelines.evaluate.other_model import in_its_place
from pipelines.models import (
    ADAPTER_CONFIG,
    ChatSettings,
    Control,
    check_generation,
    check_positions,
    evaluated_control,
    load_tokenizer,
    longest_row,
    padded_vocabularies,
    quick_imports,
    resolve_model,
)
from pipelines.recipe import (
    MODEL,
    CodeSection,
    EvaluateSection,
    OpenAIJudge,
    Recipe,
    Run,
    RunPaths,
)


def check_evaluation(recipe: Recipe) -> None:
    """Check what the benchmarks need besides the trained model.

    A run then ends before its training rather than after it.

    Raises: UserError for held-out pairs that the recipe does not keep back, a package that is not
        installed, a model, task file, key or chat template that is not there.
    """
    from pipelines.evaluate.leaderboard import check_tasks

    settings, wanted = recipe.evaluate, recipe.evaluate.benchmarks
    if not recipe.objective.declared.uses_rejected:
        raise UserError(
            f"objective.name = {recipe.objective.name!r} has no preferences to evaluate: train it "
            "with `sparsepo sft`"
        )
    check_held_out(recipe)
    control = evaluated_control(recipe)
    in_front = control.longest if control is not None else 0
    if control is not None:
        _check_controlled(recipe, control)
    if settings.sampled_benchmarks():
        with quick_imports():
            from pipelines.evaluate.text_scorer import check_text_models

        check_generation(
            recipe,
            "evaluate.generation",
            longest_prompt(recipe) + in_front,
            settings.generation.max_new_tokens,
        )
        check_text_models(settings)
    _check_engine(recipe)
    chat = ChatSettings.of(recipe.data)
    asking = {"code": settings.code, "leaderboard": settings.leaderboard}
    for name, section in asking.items():
        if name in wanted and section is not None and section.apply_chat_template:
            tokenizer = resolve_model(
                recipe.model.tokenizer or recipe.model.name_or_path, tokenizer_only=True
            )
            loaded = chat.on(load_tokenizer(str(tokenizer)))
            if loaded.chat_template is None:
                raise UserError(
                    f"evaluate.{name}.apply_chat_template: the tokenizer of {tokenizer} has no "
                    "chat template; set data.chat_template"
                )
    read_key_words(settings)
    if "leaderboard" in wanted and settings.leaderboard is not None:
        check_tasks(settings.leaderboard)
    if "code" in wanted and settings.code is not None:
        _check_programs(recipe, settings.code, in_front)
    if "dialogue" in wanted and isinstance(settings.judge, OpenAIJudge):
        from pipelines.evaluate.judge import judge_key

        judge_key(settings.judge)


def _check_controlled(recipe: Recipe, control: Control) -> None:
    """UserError for what cannot put a control in front of prompts, or has no room for it."""
    settings, tokens = recipe.evaluate, longest_row(recipe)
    key = "evaluate.model" if settings.model else "model.name_or_path"
    check_positions(
        key,
        resolve_model(settings.model or recipe.model.name_or_path),
        tokens + control.longest,
        f"a row of {tokens} tokens (data.max_prompt_tokens + max_response_tokens, or "
        f"data.max_tokens) with {control.longest} of the control are {{tokens}} tokens",
    )
    asked = f"evaluate.control = [{', '.join(settings.control)}]"
    if "leaderboard" in settings.benchmarks:
        raise UserError(
            f"{asked}: the leaderboard's tasks ask without a control; leave leaderboard out of "
            "evaluate.benchmarks"
        )
    if wants_vllm(settings):
        raise UserError(
            f"{asked}: generation.engine = 'vllm' draws without a control; take engine=transformers"
        )


def longest_prompt(recipe: Recipe) -> int:
    """Tokens of the longest prompt that is sampled from."""
    most, whole = recipe.data.max_prompt_tokens, recipe.data.max_tokens
    return most if whole is None else min(most, whole - 1)


def _check_programs(recipe: Recipe, section: CodeSection, in_front: int) -> None:
    """UserError for tasks that cannot be read, or too long for the model with their programs.

    Args:
        in_front: tokens of a control.
    """
    from pipelines.evaluate.code_tasks import read_code_tasks
    from pipelines.evaluate.prompts import CodePrompts

    tasks = read_code_tasks(section)
    name = recipe.model.tokenizer or recipe.model.name_or_path
    tokenizer = load_tokenizer(str(resolve_model(name, tokenizer_only=True)))
    asked = CodePrompts(tokenizer, section, ChatSettings.of(recipe.data))
    longest = in_front + max((len(asked(task.prompt)) for task in tasks), default=0)
    new_tokens = section.generation.max_new_tokens
    check_generation(recipe, "evaluate.code.generation", longest, new_tokens)


def _check_engine(recipe: Recipe) -> None:
    """UserError if vLLM is to draw samples and it is known that it cannot, trained or not."""
    if not wants_vllm(recipe.evaluate):
        return
    from pipelines.evaluate.vllm_generation import require_vllm

    sizes = padded_vocabularies(in_its_place(recipe) if recipe.evaluate.model else recipe)
    if sizes is not None and sizes.common < sizes.policy:
        raise UserError(
            f"generation.engine = 'vllm': it would draw from all rows, and {sizes}; take "
            "engine=transformers"
        )
    require_vllm()
    lora, evaluated = recipe.train.lora, recipe.evaluate.model
    if evaluated is not None:
        if (resolve_model(evaluated) / ADAPTER_CONFIG).is_file():
            raise UserError(
                f"generation.engine = 'vllm': evaluate.model = {evaluated} must be whole weights"
            )
    elif not RunPaths.of(recipe).train.is_local or (lora is not None and lora.save == "adapter"):
        raise _no_whole_weights(RunPaths.of(recipe))


def check_weights(run: Run, step: int | None) -> None:
    """UserError if vLLM is to draw samples from a trained model that it could not load.

    Args:
        step: names the checkpoint; None is the published model.
    """
    if not wants_vllm(run.recipe.evaluate):
        return
    if step is not None:
        raise UserError(
            "generation.engine = 'vllm': checkpoints have no model directory that vLLM could "
            "load; take engine=transformers"
        )
    if run.paths.train.exists(f"{MODEL}/{ADAPTER_CONFIG}"):
        raise _no_whole_weights(run.paths)


def wants_vllm(settings: EvaluateSection) -> bool:
    """Whether vLLM is to draw samples of a benchmark."""
    engines = [settings.generation.engine] if settings.sampled_benchmarks() else []
    if "code" in settings.benchmarks and settings.code is not None:
        engines.append(settings.code.generation.engine)
    return "vllm" in engines


def _no_whole_weights(paths: RunPaths) -> UserError:
    return UserError(
        f"generation.engine = 'vllm': {paths.model} must be whole weights "
        "on a disk that every node sees (train.lora.save=merged)"
    )
