"""What both sides of a comparison do. Imports nothing, so that every peer's environment can read it.

A task is one process: "short" decodes after SHORT_TOKENS and prefills PREFILL_TOKENS, "long" decodes after LONG_TOKENS,
"batch" decodes SEQUENCES together.
"""

SHORT_TOKENS = 64
PREFILL_TOKENS = 512
LONG_TOKENS = 4096
SEQUENCES = 8
BATCH_PROMPT_TOKENS = 64


def prompt_of(num_tokens: int, sequence: int) -> list[int]:
    """Tokens that no other sequence begins with, all below 20,000, which every vocabulary here holds."""
    return [100 + (i * 7919 + sequence * 104729) % 19000 for i in range(num_tokens)]
