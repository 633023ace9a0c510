"""A mixture of experts of any size with random weights, and skewed routes for it, to measure experts that do not fit.

    python benchmarks/synthetic_mixture.py FOLDER [--layers 8] [--steps 400] [--skew 1.2]
    residency bench FOLDER/mixture.gguf --memory 3GiB --expert-trace FOLDER/routes.npy

Writes a GGUF file of Mixtral 8x7B's extents (A. Q. Jiang et al.: Mixtral of experts, 2024) in Q4_0 but for the number
of layers, some 0.8 GB each, one tensor at a time; and routes.npy, for each step and layer two of eight experts, drawn
by Zipf's law, each layer with favourites of its own. Conversion needs as much disk again.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

HIDDEN, INTERMEDIATE, VOCABULARY = 4096, 14336, 4096
HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
EXPERTS, PER_TOKEN = 8, 2
CONTEXT_TOKENS = 4096
BLOCK_VALUES, BLOCK_BYTES = 32, 18  # Q4_0: a float16 scale and 32 codes of four bits

Bytes = npt.NDArray[np.uint8]


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--skew", type=float, default=1.2, help="Zipf's exponent; 0 is even")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    write_model(asked.folder / "mixture.gguf", asked.layers)
    np.save(asked.folder / "routes.npy", routes(asked.steps, asked.layers, asked.skew))


def routes(steps: int, layers: int, skew: float) -> npt.NDArray[np.uint8]:
    """Experts (steps, layers, two), drawn without replacement (by the largest of log share plus Gumbel noise)."""
    rng = np.random.default_rng(0)
    shares = np.arange(1.0, EXPERTS + 1) ** -skew
    favourites = np.stack([rng.permutation(EXPERTS) for _ in range(layers)])
    drawn = np.log(shares) + rng.gumbel(size=(steps, layers, EXPERTS))
    ranks = np.argsort(-drawn, axis=2)[:, :, :PER_TOKEN]
    return np.take_along_axis(np.broadcast_to(favourites, drawn.shape), ranks, axis=2).astype(np.uint8)


def tensors(layers: int) -> Iterator[tuple[str, tuple[int, ...], bool]]:
    """Name, shape, and whether it is in Q4_0."""
    yield "token_embd.weight", (VOCABULARY, HIDDEN), True
    for layer in range(layers):
        yield f"blk.{layer}.attn_norm.weight", (HIDDEN,), False
        yield f"blk.{layer}.attn_q.weight", (HEADS * HEAD_DIM, HIDDEN), True
        yield f"blk.{layer}.attn_k.weight", (KV_HEADS * HEAD_DIM, HIDDEN), True
        yield f"blk.{layer}.attn_v.weight", (KV_HEADS * HEAD_DIM, HIDDEN), True
        yield f"blk.{layer}.attn_output.weight", (HIDDEN, HEADS * HEAD_DIM), True
        yield f"blk.{layer}.ffn_norm.weight", (HIDDEN,), False
        yield f"blk.{layer}.ffn_gate_inp.weight", (EXPERTS, HIDDEN), False
        yield f"blk.{layer}.ffn_gate_exps.weight", (EXPERTS, INTERMEDIATE, HIDDEN), True
        yield f"blk.{layer}.ffn_up_exps.weight", (EXPERTS, INTERMEDIATE, HIDDEN), True
        yield f"blk.{layer}.ffn_down_exps.weight", (EXPERTS, HIDDEN, INTERMEDIATE), True
    yield "output_norm.weight", (HIDDEN,), False
    yield "output.weight", (VOCABULARY, HIDDEN), True


def write_model(path: Path, layers: int) -> None:
    """The file, one tensor in memory at a time."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(f"Random mixture of {layers} layers")
    writer.add_context_length(CONTEXT_TOKENS)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(PER_TOKEN)
    add_tokenizer(writer)
    listed = list(tensors(layers))
    for name, shape, in_blocks in listed:
        held = (*shape[:-1], shape[-1] // BLOCK_VALUES * BLOCK_BYTES) if in_blocks else shape
        num_bytes = int(np.prod(held)) * (1 if in_blocks else 4)
        kind = gguf.GGMLQuantizationType.Q4_0 if in_blocks else None
        dtype = np.dtype(np.uint8 if in_blocks else np.float32)
        writer.add_tensor_info(name, held, dtype, num_bytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(1)
    for number, (name, shape, in_blocks) in enumerate(listed):
        writer.write_tensor_data(random_blocks(rng, shape) if in_blocks else random_floats(rng, name, shape))
        print(f"\r{number + 1} of {len(listed)} tensors", end="", flush=True)
    print()
    writer.close()


def random_blocks(rng: np.random.Generator, shape: tuple[int, ...]) -> Bytes:
    """Even codes around 0, their deviation the inverse root of the columns, as a matrix that keeps sizes has it."""
    blocks = int(np.prod(shape)) // BLOCK_VALUES
    values = np.empty((blocks, BLOCK_BYTES), np.uint8)
    values[:, 2:] = np.frombuffer(rng.bytes(blocks * (BLOCK_BYTES - 2)), np.uint8).reshape(blocks, -1)
    values[:, :2] = np.frombuffer(np.float16(shape[-1] ** -0.5 / 4.6).tobytes(), np.uint8)
    return values.reshape(*shape[:-1], -1)


def random_floats(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Ones for norms, small numbers for routers."""
    if "norm" in name:
        return np.ones(shape, np.float32)
    return rng.standard_normal(shape).astype(np.float32) * np.float32(shape[-1] ** -0.5)


def add_tokenizer(writer: gguf.GGUFWriter) -> None:
    """The 256 bytes, as byte-level BPE writes them, an end of text, and tokens that nobody uses."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = iter(range(256, 512))
    tokens = [chr(byte) if byte in printable else chr(next(rest)) for byte in range(256)]
    tokens += ["<|endoftext|>", *(f"[PAD{number}]" for number in range(VOCABULARY - 257))]
    kinds = [gguf.TokenType.NORMAL] * 256 + [gguf.TokenType.CONTROL] + [gguf.TokenType.UNUSED] * (VOCABULARY - 257)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(256)


if __name__ == "__main__":
    main()
