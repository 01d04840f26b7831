"""What the compact forms of reference features (compression.py) weigh, in bytes per token."""

STATE_BLOCK = 64  # values that share a scale


def topk_bytes(k: int) -> int:
    """Bytes per token: int32 ids, float16 log-probabilities, one float32."""
    return 6 * k + 4


def state_bytes(num_layers: int, width: int) -> int:
    """Bytes per token of int8 states [L, d]: one per value and a bfloat16 scale per block."""
    return num_layers * (width + 2 * -(-width // STATE_BLOCK))
