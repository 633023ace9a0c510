"""Models that remember in a state of fixed size: Mamba (arXiv 2312.00752), Mamba 2 (arXiv 2405.21060) and RWKV.

States are counted as the published implementations allocate them: the last inputs of the short convolution and the
state proper, both in the model's number format; RWKV's accumulators in float32.
"""

from residency.formats import F32, Format
from residency.models.configuration import Configuration
from residency.models.planned.dense import blocks
from residency.models.planned.parts import Block, Draft, whole
from residency.spec.model import MlpSpec, RecurrentSpec


def mamba_mixer(
    b: Block,
    hidden: int,
    inner: int,
    *,
    state: int,
    kernel: int,
    rank: int,
    bias: bool,
    conv_bias: bool,
    prefix: str,
    normed: bool = False,
) -> None:
    """A selective state-space layer; `normed` has Jamba's norms on the time step and on B and C."""
    b.mixer = RecurrentSpec(
        kind="mamba",
        recent_values=inner * kernel,
        state_values=inner * state,
        recent_format=b.format,
        state_format=b.format,
    )
    b.add(f"{prefix}A_log", inner, state, role="other", split="rows")
    b.add(f"{prefix}D", inner, role="other", split="rows")
    b.add(f"{prefix}conv1d.weight", inner, 1, kernel, role="other", split="rows")
    if conv_bias:
        b.add(f"{prefix}conv1d.bias", inner, role="bias", split="rows")
    b.matrix(f"{prefix}in_proj", 2 * inner, hidden, bias=bias)
    b.matrix(f"{prefix}x_proj", rank + 2 * state, inner, "columns")
    b.matrix(f"{prefix}dt_proj", inner, rank, bias=True)
    b.matrix(f"{prefix}out_proj", hidden, inner, "columns", bias=bias)
    for name, width in (("dt", rank), ("b", state), ("c", state)) if normed else ():
        b.norm(f"{prefix}{name}_layernorm", width)


def mamba2_mixer(
    b: Block,
    hidden: int,
    *,
    heads: int,
    head_dim: int,
    groups: int,
    state: int,
    kernel: int,
    bias: bool,
    conv_bias: bool,
    prefix: str,
    normed: bool = True,
    state_format: Format | None = None,
) -> None:
    """A state-space layer with heads; its state in the model's number format, unless another is given."""
    inner = heads * head_dim
    convolved = inner + 2 * groups * state
    b.mixer = RecurrentSpec(
        kind="mamba2",
        recent_values=convolved * kernel,
        state_values=inner * state,
        recent_format=b.format,
        state_format=state_format or b.format,
    )
    for name in ("A_log", "D", "dt_bias"):
        b.add(f"{prefix}{name}", heads, role="other", split="rows")
    b.add(f"{prefix}conv1d.weight", convolved, 1, kernel, role="other", split="rows")
    if conv_bias:
        b.add(f"{prefix}conv1d.bias", convolved, role="bias", split="rows")
    b.matrix(f"{prefix}in_proj", inner + convolved + heads, hidden, bias=bias)
    if normed:
        b.add(f"{prefix}norm.weight", inner, role="norm", split="rows")
    b.matrix(f"{prefix}out_proj", hidden, inner, "columns", bias=bias)


def mamba(c: Configuration) -> Draft:
    """Mamba: nothing but mixers and norms."""
    if c.integer("n_layer", c.integer("num_hidden_layers")) != c.integer("num_hidden_layers"):
        raise c.unsupported("n_layer")
    hidden = c.integer("hidden_size")
    inner = c.integer("intermediate_size", int(c.number("expand", 2) * hidden))
    rank = -(-hidden // 16) if c.says("time_step_rank", "auto") else c.integer("time_step_rank", -(-hidden // 16))

    def fill(b: Block, number: int) -> None:
        b.norm("norm", hidden)
        mamba_mixer(
            b,
            hidden,
            inner,
            state=c.integer("state_size", 16),
            kernel=c.integer("conv_kernel", 4),
            rank=rank,
            bias=c.flag("use_bias", False),
            conv_bias=c.flag("use_conv_bias", True),
            prefix="mixer.",
        )

    layers = blocks(c, fill, prefix="backbone.layers.")
    tied = c.architecture == "mamba"
    return whole(c, layers, embedding="backbone.embeddings", norm="backbone.norm_f", tied=tied)


def mamba2(c: Configuration) -> Draft:
    """Mamba 2."""
    hidden = c.integer("hidden_size")
    heads, head_dim = c.integer("num_heads", 128), c.integer("head_dim", 64)
    if c.integer("intermediate_size", heads * head_dim) != heads * head_dim:
        raise c.unsupported("intermediate_size")

    def fill(b: Block, number: int) -> None:
        b.norm("norm", hidden)
        mamba2_mixer(
            b,
            hidden,
            heads=heads,
            head_dim=head_dim,
            groups=c.integer("n_groups", 8),
            state=c.integer("state_size", 128),
            kernel=c.integer("conv_kernel", 4),
            bias=c.flag("use_bias", False),
            conv_bias=c.flag("use_conv_bias", True),
            prefix="mixer.",
        )

    layers = blocks(c, fill, prefix="backbone.layers.")
    return whole(c, layers, embedding="backbone.embeddings", norm="backbone.norm_f")


def rwkv(c: Configuration) -> Draft:
    """RWKV 4 (arXiv 2305.13048): token shifts, and three accumulators for each channel."""
    hidden = c.integer("hidden_size")
    inner, intermediate = c.integer("attention_hidden_size", hidden), c.integer("intermediate_size", 4 * hidden)

    def fill(b: Block, number: int) -> None:
        b.mixer = _shifted(b, hidden, state_values=3 * inner)
        if number == 0:
            b.norm("pre_ln", hidden, bias=True)
        b.norm("ln1", hidden, bias=True)
        b.norm("ln2", hidden, bias=True)
        b.add("attention.time_decay", inner)
        b.add("attention.time_first", inner)
        for name in ("key", "value", "receptance"):
            b.add(f"attention.time_mix_{name}", 1, 1, hidden)
            b.matrix(f"attention.{name}", inner, hidden)
        b.matrix("attention.output", hidden, inner, "columns")
        _channel_mix(b, hidden, intermediate, mixes=("time_mix_key", "time_mix_receptance"))

    return _rwkv_whole(c, blocks(c, fill, prefix="rwkv.blocks."))


def rwkv5(c: Configuration) -> Draft:
    """RWKV 5, Eagle (arXiv 2404.05892): a matrix of state for each head."""
    hidden, head_dim = c.integer("hidden_size"), _head_size(c)
    inner = c.integer("attention_hidden_size", hidden)
    intermediate = c.integer("intermediate_size", int(hidden * 3.5) // 32 * 32)

    def fill(b: Block, number: int) -> None:
        _rwkv_head_block(b, number, hidden, inner, head_dim)
        for name in ("key", "value", "receptance", "gate"):
            b.add(f"attention.time_mix_{name}", 1, 1, hidden)
        _channel_mix(b, hidden, intermediate, mixes=("time_mix_key", "time_mix_receptance"))
        b.add("attention.time_decay", inner // head_dim, head_dim)

    return _rwkv_whole(c, blocks(c, fill, prefix="rwkv.blocks."))


def rwkv6(c: Configuration) -> Draft:
    """RWKV 6, Finch (arXiv 2404.05892): mixes and decay that depend on the data, through narrow matrices."""
    hidden, head_dim = c.integer("hidden_size"), _head_size(c)
    inner = c.integer("attention_hidden_size", hidden)
    intermediate = c.integer("intermediate_size", int(hidden * 3.5) // 32 * 32)
    wide = hidden == 4096
    mix_rank, decay_rank = (64, 128) if wide else (32, 64)

    def fill(b: Block, number: int) -> None:
        _rwkv_head_block(b, number, hidden, inner, head_dim)
        for name in ("x", "w", "k", "v", "r", "g"):
            b.add(f"attention.time_maa_{name}", 1, 1, hidden)
        b.add("attention.time_maa_w1", hidden, mix_rank * 5)
        b.add("attention.time_maa_w2", 5, mix_rank, hidden)
        b.add("attention.time_decay", 1, 1, inner)
        b.add("attention.time_decay_w1", hidden, decay_rank)
        b.add("attention.time_decay_w2", decay_rank, inner)
        _channel_mix(b, hidden, intermediate, mixes=("time_maa_k", "time_maa_r"))

    return _rwkv_whole(c, blocks(c, fill, prefix="rwkv.blocks."))


def _head_size(c: Configuration) -> int:
    c.integer("num_attention_heads", 1)  # published as the size of a head too
    return c.integer("head_size", 64)


def _rwkv_head_block(b: Block, number: int, hidden: int, inner: int, head_dim: int) -> None:
    b.mixer = _shifted(b, hidden, state_values=inner * head_dim)
    if number == 0:
        b.norm("pre_ln", hidden, bias=True)
    b.norm("ln1", hidden, bias=True)
    b.norm("ln2", hidden, bias=True)
    b.add("attention.time_faaaa", inner // head_dim, head_dim)
    for name in ("key", "value", "receptance", "gate"):
        b.matrix(f"attention.{name}", inner, hidden)
    b.matrix("attention.output", hidden, inner, "columns")
    b.norm("attention.ln_x", inner, bias=True)


def _shifted(b: Block, hidden: int, *, state_values: int) -> RecurrentSpec:
    """Attention and feed-forward network each keep the last input."""
    return RecurrentSpec(
        kind="rwkv", recent_values=2 * hidden, state_values=state_values, recent_format=b.format, state_format=F32
    )


def _channel_mix(b: Block, hidden: int, intermediate: int, *, mixes: tuple[str, str]) -> None:
    b.mlp = MlpSpec(intermediate=intermediate, activation="relu2", gated=True)
    for name in mixes:
        b.add(f"feed_forward.{name}", 1, 1, hidden)
    b.matrix("feed_forward.key", intermediate, hidden)
    b.matrix("feed_forward.receptance", hidden, hidden, "replicated")
    b.matrix("feed_forward.value", hidden, intermediate, "columns")


def _rwkv_whole(c: Configuration, layers: list[Block]) -> Draft:
    return whole(c, layers, embedding="rwkv.embeddings", norm="rwkv.ln_out", head="head", norm_bias=True)
