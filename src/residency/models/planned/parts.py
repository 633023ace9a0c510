"""What planned architectures are made of: a block's tensors, listed by name, shape and how ranks share them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from residency.errors import FileError, UnsupportedError
from residency.formats import BF16, F16, F32, Format
from residency.models.configuration import Configuration
from residency.spec.model import (
    Activation,
    AttentionSpec,
    LatentAttentionSpec,
    LayerSpec,
    MlpSpec,
    MoeSpec,
    RecurrentSpec,
    Role,
    Split,
    TensorSpec,
)

MAX_LAYERS = 1 << 12
ACTIVATIONS: dict[str, Activation] = {
    **dict.fromkeys(("silu", "swish"), "silu"),
    **dict.fromkeys(("gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu_tanh"), "gelu_tanh"),
    "gelu": "gelu",
    "relu": "relu",
    "relu2": "relu2",
    "xielu": "xielu",
}
DTYPES = {"float32": F32, "float16": F16, "bfloat16": BF16}


@dataclass(kw_only=True)
class Tensors:
    """A list of tensors that share a prefix of their names and, unless said otherwise, a number format."""

    prefix: str
    format: Format
    found: list[TensorSpec] = field(default_factory=list)

    def add(
        self,
        name: str,
        *shape: int,
        role: Role = "other",
        split: Split = "replicated",
        copies: int = 1,
        format: Format | None = None,
    ) -> TensorSpec:
        """One tensor, under its whole name after the prefix."""
        tensor = TensorSpec(
            name=self.prefix + name,
            shape=shape,
            format=format or self.format,
            role=role,
            split=split,
            copies=copies,
        )
        self.found.append(tensor)
        return tensor

    def matrix(
        self,
        name: str,
        rows: int,
        columns: int,
        split: Split = "rows",
        *,
        bias: bool = False,
        role: Role = "matrix",
        copies: int = 1,
    ) -> None:
        """`name`.weight of (rows, columns), and its bias; ranks that share columns hold the bias in full."""
        self.add(f"{name}.weight", rows, columns, role=role, split=split, copies=copies)
        if bias:
            bias_split: Split = "replicated" if split == "columns" else split
            self.add(f"{name}.bias", rows, role="bias", split=bias_split, copies=copies)

    def norm(self, name: str, width: int, *, bias: bool = False) -> None:
        """`name`.weight, and the bias of a layer norm."""
        self.add(f"{name}.weight", width, role="norm")
        if bias:
            self.add(f"{name}.bias", width, role="norm")


@dataclass(kw_only=True)
class Block(Tensors):
    """One layer while it is put together."""

    attention: AttentionSpec | LatentAttentionSpec | None = None
    mixer: RecurrentSpec | None = None
    mlp: MlpSpec | MoeSpec | None = None

    def layer(self) -> LayerSpec:
        """The layer, whole."""
        return LayerSpec(attention=self.attention, mixer=self.mixer, mlp=self.mlp, tensors=tuple(self.found))


@dataclass(kw_only=True)
class Draft:
    """A whole model while it is put together. `unused` are tensors of the checkpoint that nothing loads."""

    embedding: TensorSpec
    layers: Sequence[Block]
    final_norm: TensorSpec
    head: TensorSpec | None
    others: tuple[TensorSpec, ...] = ()
    unused: tuple[TensorSpec, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Heads:
    """How many heads attend, and how wide they are."""

    hidden: int
    num_heads: int
    num_kv_heads: int
    head_dim: int

    @property
    def q_rows(self) -> int:
        """Rows of the query projection."""
        return self.num_heads * self.head_dim

    @property
    def kv_rows(self) -> int:
        """Rows of the key projection, and of the value projection."""
        return self.num_kv_heads * self.head_dim

    def attention(
        self,
        window_tokens: int | None = None,
        *,
        bias: bool = False,
        qk_norm: bool = False,
        shares_kv: bool = False,
    ) -> AttentionSpec:
        """What such heads do and keep."""
        return AttentionSpec(
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            scale=self.head_dim**-0.5,
            window_tokens=window_tokens,
            bias=bias,
            qk_norm=qk_norm,
            shares_kv=shares_kv,
        )


def heads_of(c: Configuration, *, head_dim: int | None = None, num_kv_heads: int | None = None) -> Heads:
    """The heads in a configuration; `head_dim` where the architecture has one of its own."""
    hidden, num_heads = c.integer("hidden_size"), c.integer("num_attention_heads")
    if head_dim is None and not c.has("head_dim") and hidden % num_heads:
        raise FileError(f"{c.source} says {num_heads} heads share {hidden} values, which leaves a remainder.")
    kv_heads = num_kv_heads or c.integer("num_key_value_heads", num_heads)
    if num_heads % kv_heads:
        raise FileError(f"{c.source} says {num_heads} heads share {kv_heads} key-value heads unevenly.")
    width = c.integer("head_dim", head_dim or hidden // num_heads)
    return Heads(hidden=hidden, num_heads=num_heads, num_kv_heads=kv_heads, head_dim=width)


def layer_numbers(c: Configuration, key: str = "num_hidden_layers") -> range:
    """The layers' numbers. FileError for more than any model has."""
    count = c.integer(key)
    if count > MAX_LAYERS:
        raise FileError(f"{c.source} claims {count} layers; more than {MAX_LAYERS} cannot be right.")
    return range(count)


def activation_of(c: Configuration, key: str = "hidden_act", default: str = "silu") -> Activation:
    """The feed-forward network's activation. UnsupportedError names one that is not known."""
    name = c.text(key, default)
    if name not in ACTIVATIONS:
        raise UnsupportedError(f"{c.source} asks for the activation {name[:80]!r}, which is not known here.")
    return ACTIVATIONS[name]


def number_format(c: Configuration) -> Format:
    """The number format of what is not quantized: config.json's dtype; float32 where there is none."""
    name = c.text("dtype", c.text("torch_dtype", "float32")).removeprefix("torch.")
    if name not in DTYPES:
        raise UnsupportedError(f"{c.source} says dtype is {name[:80]!r}; known are {', '.join(DTYPES)}.")
    return DTYPES[name]


def grouped_attention(
    b: Block,
    heads: Heads,
    *,
    window_tokens: int | None = None,
    bias: bool = False,
    out_bias: bool = False,
    qk_norm: bool = False,
    prefix: str = "self_attn.",
    out: str = "o_proj",
    norms: tuple[str, str] = ("q_norm", "k_norm"),
    whole_norms: bool = False,
) -> None:
    """Separate projections of queries, keys and values; norms of each head, or `whole_norms` over all heads."""
    b.attention = heads.attention(window_tokens, bias=bias, qk_norm=qk_norm and not whole_norms)
    b.matrix(prefix + "q_proj", heads.q_rows, heads.hidden, bias=bias)
    b.matrix(prefix + "k_proj", heads.kv_rows, heads.hidden, "kv_heads", bias=bias)
    b.matrix(prefix + "v_proj", heads.kv_rows, heads.hidden, "kv_heads", bias=bias)
    if qk_norm:
        b.norm(prefix + norms[0], heads.q_rows if whole_norms else heads.head_dim)
        b.norm(prefix + norms[1], heads.kv_rows if whole_norms else heads.head_dim)
    b.matrix(prefix + out, heads.hidden, heads.q_rows, "columns", bias=out_bias)


def gated_mlp(
    b: Block, hidden: int, intermediate: int, activation: Activation, *, prefix: str = "mlp.", bias: bool = False
) -> None:
    """gate_proj, up_proj and down_proj."""
    b.mlp = MlpSpec(intermediate=intermediate, activation=activation)
    gated_matrices(b, prefix, hidden, intermediate, bias=bias)


def plain_mlp(
    b: Block, hidden: int, intermediate: int, activation: Activation, *, names: tuple[str, str], bias: bool
) -> None:
    """Two matrices: up and down."""
    b.mlp = MlpSpec(intermediate=intermediate, activation=activation, gated=False)
    b.matrix(names[0], intermediate, hidden, bias=bias)
    b.matrix(names[1], hidden, intermediate, "columns", bias=bias)


def experts(
    b: Block,
    hidden: int,
    spec: MoeSpec,
    *,
    prefix: str = "mlp.",
    router: str = "gate",
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
    shared: str | None = None,
) -> None:
    """A router, experts that are listed one by one, and `shared`, a network that every token passes."""
    b.mlp = spec
    b.matrix(prefix + router, spec.num_experts, hidden, "replicated", role="router")
    gated_matrices(
        b, prefix + "experts.{}.", hidden, spec.intermediate, names=names, role="expert", copies=spec.num_experts
    )
    if shared is not None and spec.shared_intermediate:
        gated_matrices(b, f"{prefix}{shared}.", hidden, spec.shared_intermediate)


def stacked_experts(b: Block, hidden: int, intermediate: int, count: int) -> None:
    """Granite's: a router, and the experts of a layer in two stacks of matrices."""
    b.matrix("block_sparse_moe.router.layer", count, hidden, "replicated", role="router")
    b.add("block_sparse_moe.input_linear.weight", count, 2 * intermediate, hidden, role="expert", split="rows")
    b.add("block_sparse_moe.output_linear.weight", count, hidden, intermediate, role="expert", split="columns")


def gated_matrices(
    b: Block,
    prefix: str,
    hidden: int,
    intermediate: int,
    *,
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
    bias: bool = False,
    role: Role = "matrix",
    copies: int = 1,
) -> None:
    """The three matrices of a gated network, or of `copies` of it."""
    gate, up, down = (prefix + name for name in names)
    b.matrix(gate, intermediate, hidden, bias=bias, role=role, copies=copies)
    b.matrix(up, intermediate, hidden, bias=bias, role=role, copies=copies)
    b.matrix(down, hidden, intermediate, "columns", bias=bias, role=role, copies=copies)


def whole(
    c: Configuration,
    blocks: Sequence[Block],
    *,
    embedding: str = "model.embed_tokens",
    norm: str = "model.norm",
    head: str = "lm_head",
    norm_bias: bool = False,
    head_bias: bool = False,
    tied: bool = False,
    extra: Iterable[TensorSpec] = (),
    notes: tuple[str, ...] = (),
) -> Draft:
    """The model around its layers; `tied` where config.json does not say tie_word_embeddings."""
    vocabulary, hidden, fmt = c.integer("vocab_size"), c.integer("hidden_size"), number_format(c)
    around = Tensors(prefix="", format=fmt)
    last = around.add(f"{norm}.weight", hidden, role="norm")
    others = Tensors(prefix="", format=fmt)
    if norm_bias:
        others.add(f"{norm}.bias", hidden, role="norm")
    out = None
    if not c.flag("tie_word_embeddings", tied):
        out = around.add(f"{head}.weight", vocabulary, hidden, role="head", split="vocabulary")
        if head_bias:
            others.add(f"{head}.bias", vocabulary, role="bias", split="vocabulary")
    return Draft(
        embedding=around.add(f"{embedding}.weight", vocabulary, hidden, role="embedding", split="vocabulary"),
        layers=blocks,
        final_norm=last,
        head=out,
        others=(*others.found, *extra),
        notes=notes,
    )
