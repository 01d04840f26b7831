"""Make the compact golden set committed beside this file from the full one: `python
tests/golden/compact.py FULL DEST`.

Keeps what test_golden.py compares, one small policy gradient and all mask gradients.
"""

import json
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

KEEP = ("_mask", "_policy_token_logps", "_reference_token_logps", "_log_ratio", "_token_neg_kl")
KEEP_EXACT = ("losses", "u", "d", "u_chosen", "u_rejected", "d_chosen", "d_rejected")
POLICY_GRADIENTS = (
    "grad.gpt_neox.layers.2.attention.dense.weight",
    "grad.transformer.h.2.attn.c_proj.weight",
)


# Cases that keep the gradient of ml_*'s first map (200 x 32 per layer), the largest tensor by far.
KEEP_FIRST_MAP = ("sparse_ml_all_common_l1-0", "sparse_ml_last_common_l1-0")


def wanted(case: str, key: str) -> bool:
    if key.endswith("ff1.weight") and case not in KEEP_FIRST_MAP:
        return False
    if key.startswith("grad."):
        return key in POLICY_GRADIENTS or key.split(".")[1].endswith("_mask")
    return key in KEEP_EXACT or (key.endswith(KEEP) and key.split("_")[0] in ("chosen", "rejected"))


def main(source: Path, destination: Path) -> None:
    for arch in ("neox", "gpt2"):
        manifest = json.loads((source / arch / "manifest.json").read_text())
        cases = {}
        for name, case in manifest["cases"].items():
            settings = case["settings"]
            learned = settings["kind"] == "sparsepo"
            # Two ml_all masks hold 150 kB of weights a case: ml_all_common and ml_last_indep test
            # the same code.
            if "crash" in case or name.startswith("sparse_ml_all_indep"):
                continue
            cases[name] = {"file": case["file"], "settings": settings}
            files = [case["file"], *([settings["mask_weights"]] if learned else [])]
            for file in files:
                tensors = load_file(source / arch / file)
                if file == case["file"]:
                    tensors = {key: value for key, value in tensors.items() if wanted(name, key)}
                (destination / arch / file).parent.mkdir(parents=True, exist_ok=True)
                save_file(tensors, destination / arch / file)
        for file in ("policy", "reference", "inputs"):
            save_file(
                load_file(source / arch / f"{file}.safetensors"),
                destination / arch / f"{file}.safetensors",
            )
        compact = {
            "config": manifest["config"],
            "cases": cases,
            "hook_tensors_full": manifest["hook_tensors_full"],
        }
        (destination / arch / "manifest.json").write_text(json.dumps(compact, sort_keys=True))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
