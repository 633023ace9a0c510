"""Perplexity of a GGUF file in PyTorch, with what meets its weights exact, and rounded as llama.cpp's kernels round it.

llama.cpp multiplies quantized weights by activations in int8: by 32 values with Q4_0 to Q8_0, by 256 with K-quants
(its ggml-quants.c). Beside `benchmarks/perplexity_llama_cpp.py` this tells how much of a difference in perplexity is
the file's, and how much the rounding's. Needs torch, transformers and gguf:

    python benchmarks/rounded_activations.py model-q8_0.gguf wiki.test.raw 2
"""

import math
import sys
from pathlib import Path

import gguf
import torch
import transformers

from residency.engine.text import load_tokenizer
from residency.spec.opening import open_checkpoint
from residency.verifier.perplexity import chunks_of

NAMES = {
    **{"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"},
    **{"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"},
}


def main() -> None:
    """Print both perplexities."""
    path, text, max_chunks = Path(sys.argv[1]), Path(sys.argv[2]).read_text("utf-8", errors="replace"), sys.argv[3]
    chunks = chunks_of(load_tokenizer(open_checkpoint(path)), text, int(max_chunks))
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    tokens = [torch.tensor(chunk)[None] for chunk in chunks]
    print(f"activations exact: perplexity {perplexity(model, tokens):.4f}")
    formats = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            number_format = formats[held_name(name, formats)]
            module.register_forward_pre_hook(lambda _, given, each=number_format: rounded(given[0], each))
    print(f"activations rounded: perplexity {perplexity(model, tokens):.4f}")


def held_name(name: str, formats: dict[str, str]) -> str:
    """What the file calls the weights of a module."""
    *_, layer, _, last = ("", "", *name.split("."))
    if last in NAMES:
        return f"blk.{layer}.{NAMES[last]}.weight"
    return "output.weight" if "output.weight" in formats else "token_embd.weight"


def rounded(values: torch.Tensor, number_format: str) -> torch.Tensor:
    """In int8, each block by its value of largest magnitude; scales of 32 values are held in float16."""
    if number_format in ("F32", "F16", "BF16"):
        return values
    wide = number_format.endswith("_K")
    blocks = values.reshape(-1, 256 if wide else 32)
    scales = blocks.abs().amax(dim=1, keepdim=True) / 127
    codes = torch.round(blocks / torch.where(scales == 0, 1, scales))
    return (codes * (scales if wide else scales.half().float())).reshape(values.shape)


@torch.no_grad()
def perplexity(model: torch.nn.Module, chunks: list[torch.Tensor]) -> float:
    """Over the second halves of the chunks."""
    losses = []
    for tokens in chunks:
        half = tokens.shape[1] // 2
        logits = model(tokens).logits[0, half:-1].double()
        losses.append(torch.nn.functional.cross_entropy(logits, tokens[0, half + 1 :]))
    return math.exp(torch.stack(losses).mean())


if __name__ == "__main__":
    main()
