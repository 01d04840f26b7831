"""The quickstart's own files, damaged: one line that says what to remove."""

import json
from pathlib import Path

import pytest
from damage.damages import ANY, FOLDER, JSON, LINES
from damage.outcomes import damage_file

from pipelines.commands import quickstart
from pipelines.errors import DamagedFile, UserError
from pipelines.recipe.stage import StageRecord
from pipelines.storage.store import RunStore


def test_a_damaged_world_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REVIEWS", "TRAIN_PROMPTS", "TEST_PROMPTS"):
        monkeypatch.setattr(quickstart, name, 5)
    folder = quickstart.make_world(tmp_path, 3)
    assert quickstart.make_world(tmp_path, 3) == folder
    with pytest.raises(UserError, match="holds the quickstart of seed 3, now seed=4"):
        quickstart.make_world(tmp_path, 4)
    for name, damages in (
        ("complete.json", JSON), ("prompts.jsonl", LINES), ("key_words.txt", ANY),
        ("model/model.safetensors", ANY), ("model/tokenizer.json", JSON),
    ):  # fmt: skip
        whole = (folder / name).read_bytes()
        for damage in (*damages, FOLDER):
            damage_file(folder / name, damage, damages)
            with pytest.raises(DamagedFile, match=f"{name} is damaged: .*; remove {tmp_path} and "):
                quickstart.make_world(tmp_path, 3)
            if damage == FOLDER:
                (folder / name / "inside").unlink()
                (folder / name).rmdir()
            (folder / name).write_bytes(whole)
    assert quickstart.make_world(tmp_path, 3) == folder


def test_damaged_candidates_are_named(tmp_path: Path) -> None:
    world, sample = RunStore(str(tmp_path / "world")), RunStore(str(tmp_path / "sample"))
    prompts = [{"prompt": "a", "split": "train"}, {"prompt": "b", "split": "test"}]
    world.write_bytes("prompts.jsonl", b"".join(json.dumps(p).encode() + b"\n" for p in prompts))
    lines = ['{"prompt": "b", "score": 2}', '{"prompt": "a", "score": 1}']
    sample.write_bytes("candidates.jsonl", "".join(f"{line}\n" for line in lines).encode())
    hash_ = sample.checksum("candidates.jsonl")
    StageRecord("sample", sample, {}, {}).finish({}, {"candidates.jsonl": hash_})
    quickstart.split_candidates(tmp_path)
    assert (tmp_path / "sample/train.jsonl").read_text() == lines[1] + "\n"
    assert (tmp_path / "sample/test.jsonl").read_text() == lines[0] + "\n"
    whole = sample.read_bytes("candidates.jsonl")
    for damage in LINES:
        damage_file(tmp_path / "sample/candidates.jsonl", damage, LINES)
        with pytest.raises(DamagedFile, match=r"candidates.jsonl is damaged: .*; remove .*/sample"):
            quickstart.split_candidates(tmp_path)
        (tmp_path / "sample/candidates.jsonl").write_bytes(whole)
