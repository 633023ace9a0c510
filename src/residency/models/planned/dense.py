"""Decoders whose layers are grouped-query attention and one gated feed-forward network: Llama and its relatives."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from residency.models.configuration import Configuration
from residency.models.planned.parts import (
    Block,
    Draft,
    activation_of,
    gated_mlp,
    grouped_attention,
    heads_of,
    layer_numbers,
    number_format,
    plain_mlp,
    whole,
)
from residency.models.planned.windows import optional_windows, windows
from residency.spec.model import MlpSpec

Fill = Callable[[Block, int], None]
Norms = tuple[str, str, str, str]  # before and after attention, and before and after the feed-forward network; "": none

BEFORE = ("input_layernorm", "", "post_attention_layernorm", "")
AFTER = ("", "post_attention_layernorm", "", "post_feedforward_layernorm")
AROUND = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
PARALLEL = ("input_layernorm", "", "", "")


def blocks(c: Configuration, fill: Fill, *, prefix: str = "model.layers.") -> list[Block]:
    """All layers, each filled by `fill`, which is given the block and its number."""
    made = []
    for number in layer_numbers(c):
        block = Block(prefix=f"{prefix}{number}.", format=number_format(c))
        fill(block, number)
        made.append(block)
    return made


def llama(c: Configuration) -> Draft:
    """Llama, Mistral, SmolLM, Granite: norms before attention and before the feed-forward network."""
    bias, mlp_bias = c.flag("attention_bias", False), c.flag("mlp_bias", False)
    return decoder(c, [None] * len(layer_numbers(c)), bias=bias, out_bias=bias, mlp_bias=mlp_bias)


def mistral(c: Configuration) -> Draft:
    """Mistral: every layer slides where config.json has a window; 4096 where it is silent."""
    return decoder(c, windows(c, slides=lambda number: True, default_tokens=4096))


def smollm3(c: Configuration) -> Draft:
    """SmolLM3: Llama that leaves out the rotation in some layers."""
    bias = c.flag("attention_bias", False)
    return decoder(c, optional_windows(c), bias=bias, out_bias=bias, tied=True)


def ministral(c: Configuration) -> Draft:
    """Ministral: Mistral with heads of their own width."""
    return decoder(c, windows(c, slides=lambda number: True), head_dim=128)


def olmo(c: Configuration) -> Draft:
    """OLMo: layer norms without weights."""
    bias = c.flag("attention_bias", False)
    none = [None] * len(layer_numbers(c))
    draft = decoder(c, none, norms=("", "", "", ""), bias=bias, out_bias=bias)
    draft.final_norm = replace(draft.final_norm, copies=0)
    return draft


def apertus(c: Configuration) -> Draft:
    """Apertus: norms on the heads of queries and keys, and an activation with weights of its own, xIELU."""
    bias = c.flag("attention_bias", False)
    norms = ("attention_layernorm", "", "feedforward_layernorm", "")
    for key, expected in (("qk_norm", True), ("post_norm", False), ("mlp_bias", False)):
        if c.flag(key, expected) is not expected:
            raise c.unsupported(key)
    none = [None] * len(layer_numbers(c))
    draft = decoder(c, none, norms=norms, bias=bias, out_bias=bias, gated=False, qk_norm=True)
    for b in draft.layers:
        for name in ("alpha_p", "alpha_n"):
            b.add(f"mlp.act_fn.{name}", 1)
        for name in ("beta", "eps"):
            b.add(f"mlp.act_fn.{name}")
    return draft


def bitnet(c: Configuration) -> Draft:
    """BitNet b1.58 (arXiv 2402.17764): Llama with norms before each last projection. Its master weights; packed ones,
    four values a byte, are quantization_config's."""
    bias = c.flag("attention_bias", False)
    draft = decoder(c, [None] * len(layer_numbers(c)), bias=bias, out_bias=bias)
    for b in draft.layers:
        b.norm("self_attn.attn_sub_norm", c.integer("hidden_size"))
        b.norm("mlp.ffn_sub_norm", c.integer("intermediate_size"))
    return draft


def vaultgemma(c: Configuration) -> Draft:
    """VaultGemma: Gemma 2 without norms after its parts."""
    bias = c.flag("attention_bias", False)
    sliding = windows(c, slides=lambda number: number % 2 == 0, default_tokens=4096)
    norms = ("input_layernorm", "", "pre_feedforward_layernorm", "")
    return decoder(c, sliding, norms=norms, bias=bias, out_bias=bias, head_dim=256, tied=True)


def internlm3(c: Configuration) -> Draft:
    """InternLM3: Llama whose biases are told apart."""
    bias, out_bias = c.flag("qkv_bias", False), c.flag("bias", False)
    none = [None] * len(layer_numbers(c))
    return decoder(c, none, bias=bias, out_bias=out_bias, mlp_bias=out_bias, head_dim=128)


def cwm(c: Configuration) -> Draft:
    """Code World Model: every fourth layer sees the whole context."""
    return decoder(c, windows(c, slides=lambda number: number % 4 != 0, default_tokens=8192), head_dim=128)


def ernie4_5(c: Configuration) -> Draft:
    """ERNIE 4.5: Llama with heads of their own width, the head tied."""
    bias = c.flag("use_bias", False)
    none = [None] * len(layer_numbers(c))
    return decoder(c, none, bias=bias, out_bias=bias, mlp_bias=bias, head_dim=128, tied=True)


def arcee(c: Configuration) -> Draft:
    """Arcee: Llama whose feed-forward network squares a ReLU and has no gate."""
    bias, mlp_bias = c.flag("attention_bias", False), c.flag("mlp_bias", False)
    none = [None] * len(layer_numbers(c))
    return decoder(c, none, bias=bias, out_bias=bias, mlp_bias=mlp_bias, gated=False)


def nemotron(c: Configuration) -> Draft:
    """Nemotron and Minitron: layer norms, and a feed-forward network that squares a ReLU and has no gate."""
    bias, mlp_bias = c.flag("attention_bias", False), c.flag("mlp_bias", False)
    none = [None] * len(layer_numbers(c))
    c = c.with_defaults(hidden_act="relu2")
    return decoder(c, none, bias=bias, out_bias=bias, mlp_bias=mlp_bias, gated=False, norm_bias=True)


def stablelm(c: Configuration) -> Draft:
    """StableLM: layer norms; attention and feed-forward network side by side in some."""
    for key in ("qk_layernorm", "use_parallel_residual"):
        if c.flag(key, False):
            raise c.unsupported(key)
    none = [None] * len(layer_numbers(c))
    return decoder(c, none, bias=c.flag("use_qkv_bias", False), norm_bias=True)


def hunyuan_v1_dense(c: Configuration) -> Draft:
    """Hunyuan: norms on the heads of queries and keys."""
    bias = c.flag("attention_bias", False)
    none = [None] * len(layer_numbers(c))
    names = ("query_layernorm", "key_layernorm")
    return decoder(c, none, bias=bias, out_bias=bias, qk_norm=c.flag("use_qk_norm", True), head_norms=names)


def qwen2(c: Configuration) -> Draft:
    """Qwen2 and Qwen2.5: biases on queries, keys and values."""
    return decoder(c, optional_windows(c), bias=True)


def qwen3(c: Configuration) -> Draft:
    """Qwen3: norms on the heads of queries and keys."""
    bias = c.flag("attention_bias", False)
    return decoder(c, optional_windows(c), bias=bias, out_bias=bias, qk_norm=True, head_dim=128)


def gemma(c: Configuration) -> Draft:
    """Gemma: heads of their own width, the head tied."""
    bias = c.flag("attention_bias", False)
    none = [None] * len(layer_numbers(c))
    return decoder(c, none, bias=bias, out_bias=bias, head_dim=256, tied=True)


def gemma2(c: Configuration) -> Draft:
    """Gemma 2: every other layer slides; norms before and after both parts."""
    bias = c.flag("attention_bias", False)
    sliding = windows(c, slides=lambda number: number % 2 == 0, default_tokens=4096)
    if c.has("sliding_window_size") and not c.says("sliding_window_size", c.integer("sliding_window", 4096)):
        raise c.unsupported("sliding_window_size")
    return decoder(c, sliding, norms=AROUND, bias=bias, out_bias=bias, head_dim=256, tied=True)


def gemma3(c: Configuration) -> Draft:
    """Gemma 3's text model: every sixth layer sees the whole context."""
    pattern = c.integer("sliding_window_pattern", c.integer("_sliding_window_pattern", 6))
    sliding = windows(c, slides=lambda number: (number + 1) % pattern != 0, default_tokens=4096)
    bias = c.flag("attention_bias", False)
    return decoder(c, sliding, norms=AROUND, bias=bias, out_bias=bias, qk_norm=True, head_dim=256, tied=True)


def phi3(c: Configuration) -> Draft:
    """Phi-3 and Phi-4: queries, keys and values in one matrix, gate and up in another."""
    heads = heads_of(c)
    bias = c.flag("attention_bias", False)
    intermediate, activation = c.integer("intermediate_size"), activation_of(c)
    sliding = windows(c, slides=lambda number: True)

    def fill(b: Block, number: int) -> None:
        b.attention = heads.attention(sliding[number])
        b.norm("input_layernorm", heads.hidden)
        b.matrix("self_attn.qkv_proj", heads.q_rows + 2 * heads.kv_rows, heads.hidden, bias=bias)
        b.matrix("self_attn.o_proj", heads.hidden, heads.q_rows, "columns", bias=bias)
        b.norm("post_attention_layernorm", heads.hidden)
        b.mlp = MlpSpec(intermediate=intermediate, activation=activation)
        b.matrix("mlp.gate_up_proj", 2 * intermediate, heads.hidden)
        b.matrix("mlp.down_proj", heads.hidden, intermediate, "columns")

    return whole(c, blocks(c, fill))


def glm(c: Configuration) -> Draft:
    """GLM-4 and GLM-Edge: Phi's gate and up in one matrix."""
    return _glm(c, norms=BEFORE, bias=c.flag("attention_bias", True))


def glm4(c: Configuration) -> Draft:
    """GLM-4-0414: norms after both parts too."""
    norms = ("input_layernorm", "post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm")
    return _glm(c, norms=norms, bias=c.flag("attention_bias", False))


def glm4v(c: Configuration) -> Draft:
    """GLM-4.1V's text model: GLM-4-0414 with biases on queries, keys and values."""
    return glm4(c.with_defaults(attention_bias=True))


def _glm(c: Configuration, *, norms: Norms, bias: bool) -> Draft:
    heads = heads_of(c, head_dim=128)
    intermediate, activation = c.integer("intermediate_size"), activation_of(c)

    def fill(b: Block, number: int) -> None:
        grouped_attention(b, heads, bias=bias)
        for name in filter(None, norms):
            b.norm(name, heads.hidden)
        b.mlp = MlpSpec(intermediate=intermediate, activation=activation)
        b.matrix("mlp.gate_up_proj", 2 * intermediate, heads.hidden)
        b.matrix("mlp.down_proj", heads.hidden, intermediate, "columns")

    return whole(c, blocks(c, fill))


def olmo2(c: Configuration) -> Draft:
    """OLMo 2: norms after attention and feed-forward network, and over all queries and all keys."""
    return _olmo(c, windows(c, slides=lambda number: False))


def olmo3(c: Configuration) -> Draft:
    """OLMo 3: every fourth layer sees the whole context."""
    return _olmo(c, windows(c, slides=lambda number: (number + 1) % 4 != 0, default_tokens=4096))


def exaone4(c: Configuration) -> Draft:
    """EXAONE 4: norms after both parts and on heads; windows in most layers of the larger model."""
    return decoder(c, exaone_windows(c), norms=AFTER, qk_norm=True)


def exaone_windows(c: Configuration, default_tokens: int | None = None) -> list[int | None]:
    """Windows in all but every fourth layer; the pattern may be written as "LLLG"."""
    pattern = 0 if c.says("sliding_window_pattern", "LLLG") else c.integer("sliding_window_pattern", 0, least=0)
    return windows(c, slides=lambda number: (number + 1) % (pattern or 4) != 0, default_tokens=default_tokens)


def cohere(c: Configuration) -> Draft:
    """Command R: attention and feed-forward network side by side behind one norm; the head is tied."""
    if c.flag("use_qk_norm", False):
        raise c.unsupported("use_qk_norm")
    bias = c.flag("attention_bias", False)
    none = [None] * len(layer_numbers(c))
    return decoder(c, none, norms=PARALLEL, bias=bias, out_bias=bias, tied=True)


def cohere2(c: Configuration) -> Draft:
    """Command A and R7B: every fourth layer sees the whole context."""
    bias, pattern = c.flag("attention_bias", False), c.integer("sliding_window_pattern", 4)
    sliding = windows(c, slides=lambda number: (number + 1) % pattern != 0, default_tokens=4096)
    return decoder(c, sliding, norms=PARALLEL, bias=bias, out_bias=bias, tied=True)


def seed_oss(c: Configuration) -> Draft:
    """Seed-OSS: biases on queries, keys and values."""
    return decoder(
        c,
        [None] * len(layer_numbers(c)),
        bias=c.flag("attention_bias", True),
        out_bias=c.flag("attention_out_bias", False),
        mlp_bias=c.flag("mlp_bias", False),
        head_dim=128,
    )


def starcoder2(c: Configuration) -> Draft:
    """StarCoder2: layer norms and biases everywhere, a plain feed-forward network."""
    heads, bias = heads_of(c), c.flag("use_bias", True)
    intermediate, activation = c.integer("intermediate_size"), activation_of(c, default="gelu_pytorch_tanh")
    sliding = windows(c, slides=lambda number: True)

    def fill(b: Block, number: int) -> None:
        b.norm("input_layernorm", heads.hidden, bias=True)
        grouped_attention(b, heads, window_tokens=sliding[number], bias=bias, out_bias=bias)
        b.norm("post_attention_layernorm", heads.hidden, bias=True)
        plain_mlp(b, heads.hidden, intermediate, activation, names=("mlp.c_fc", "mlp.c_proj"), bias=bias)

    return whole(c, blocks(c, fill), norm_bias=True, tied=True)


def _olmo(c: Configuration, sliding: Sequence[int | None]) -> Draft:
    bias = c.flag("attention_bias", False)
    return decoder(c, sliding, norms=AFTER, bias=bias, out_bias=bias, qk_norm=True, whole_norms=True)


def decoder(
    c: Configuration,
    sliding: Sequence[int | None],
    *,
    norms: Norms = BEFORE,
    norm_bias: bool = False,
    bias: bool = False,
    out_bias: bool = False,
    mlp_bias: bool = False,
    gated: bool = True,
    qk_norm: bool = False,
    head_norms: tuple[str, str] = ("q_norm", "k_norm"),
    whole_norms: bool = False,
    head_dim: int | None = None,
    tied: bool = False,
) -> Draft:
    """Attention with separate projections and a feed-forward network, with `norms` around the two."""
    heads = heads_of(c, head_dim=head_dim)
    key = "hidden_activation" if c.has("hidden_activation") else "hidden_act"
    intermediate, activation = c.integer("intermediate_size"), activation_of(c, key)
    before_attention, after_attention, before_mlp, after_mlp = norms

    def fill(b: Block, number: int) -> None:
        def norm(name: str) -> None:
            if name:
                b.norm(name, heads.hidden, bias=norm_bias)

        norm(before_attention)
        grouped_attention(
            b,
            heads,
            window_tokens=sliding[number],
            bias=bias,
            out_bias=out_bias,
            qk_norm=qk_norm,
            norms=head_norms,
            whole_norms=whole_norms,
        )
        norm(after_attention)
        norm(before_mlp)
        if gated:
            gated_mlp(b, heads.hidden, intermediate, activation, bias=mlp_bias)
        else:
            names = ("mlp.up_proj", "mlp.down_proj")
            plain_mlp(b, heads.hidden, intermediate, activation, names=names, bias=mlp_bias)
        norm(after_mlp)

    return whole(c, blocks(c, fill), norm_bias=norm_bias, tied=tied)
