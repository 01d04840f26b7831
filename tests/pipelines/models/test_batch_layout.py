"""Which layout a model takes, and how rows are cut into batches."""

import random
from pathlib import Path

import pytest
import torch

from pipelines.errors import UserError
from pipelines.models.layout import batch_layout
from pipelines.models.loading import load_causal_lm
from sparsepo import TokenizedPair, packed_layout
from sparsepo.batching.batch_layout import BatchLayout


def test_batches_hold_the_budget_and_every_pair_once() -> None:
    rng = random.Random(1)
    pairs = [
        TokenizedPair([1] * rng.randint(1, 60), [2] * rng.randint(1, 50), [3] * rng.randint(1, 50))
        for _ in range(200)
    ]
    for kind in ("padded", "shared", "packed"):
        layout = BatchLayout(kind, 1024)  # type: ignore[arg-type]
        batches = layout.batches(pairs)
        assert sorted(i for batch in batches for i in batch) == list(range(200))
        for batch in batches:
            inputs = layout.inputs([pairs[i] for i in batch])
            assert inputs.input_ids.numel() <= 1024
            assert inputs.num_pairs == len(batch)
            if kind == "packed":
                assert inputs.input_ids.shape[0] == 1 and inputs.input_ids.shape[1] % 128 == 0
    widths = {BatchLayout("packed", 1024).inputs(pairs[:n]).input_ids.shape[1] for n in range(1, 9)}
    assert widths <= {128, 256, 512, 1024}, "rows come in few widths"
    long = [TokenizedPair([1] * 900, [2] * 900, [3] * 900)]
    assert BatchLayout("packed", 1024).inputs(long).input_ids.shape == (1, 3072)


def test_a_model_that_cannot_be_packed_is_refused_where_packing_is_asked_for(
    tmp_path: Path,
) -> None:
    from transformers import BloomConfig, BloomForCausalLM

    bloom = BloomForCausalLM(BloomConfig(vocab_size=99, hidden_size=16, n_layer=1, n_head=4)).eval()
    assert BatchLayout.choose("auto", [bloom], 512).kind == "padded"
    with pytest.raises(
        UserError, match="reference.layout=packed: BloomForCausalLM cannot be packed: "
    ):
        batch_layout("reference.layout", "packed", [bloom], 512)


def test_shared_rows_are_what_a_cpu_takes(model_dir: Path) -> None:
    model = load_causal_lm(str(model_dir), torch.float32)
    layout = BatchLayout.choose("auto", [model], 4096)
    assert layout.kind == "shared"
    pairs = [TokenizedPair([1, 2, 3], [4, 5], [6]), TokenizedPair([1], [4], [6, 7])]
    found = layout.inputs(pairs)
    assert torch.equal(found.input_ids, packed_layout(pairs).input_ids)
