"""Logits of `transformers` on a saved folder: what the engine's are compared with. Needs torch."""

from pathlib import Path

import numpy as np
import numpy.typing as npt


def reference_logits(folder: Path, tokens: list[int]) -> npt.NDArray[np.float32]:
    """float32 logits (tokens, vocabulary) of the checkpoint in `folder` after each of `tokens`."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model.train(False)
    with torch.no_grad():
        logits = model(torch.tensor([tokens]), use_cache=False).logits[0]
    result: npt.NDArray[np.float32] = logits.float().numpy()
    return result
