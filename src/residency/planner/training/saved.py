"""What the forward pass keeps of one layer for its backward pass: a list of tensors, each with its formula.

Two ways of computing are listed. "eager" is transformers' modules as PyTorch runs them, where each elementary
operation keeps what its derivative needs: a norm its input in float32, the factor and the normalised values. "fused"
is one kernel a block, as in Megatron-LM, Liger or compiled code, where a norm keeps its input and one factor. A linear
layer keeps its input only if it is trained, or adapted; attention keeps queries, keys, values, its output, and in the
naive form its matrix of weights. With a GPT-3 layer, fused, the sum is the published 34 + 5as/h bytes a value.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from residency.planner.training.options import TrainingOptions
from residency.planner.training.tensors import LINEAR_ROLES, adapted_matrices, in_mlp, module_name
from residency.spec.model import (
    AttentionSpec,
    LatentAttentionSpec,
    LayerSpec,
    MlpSpec,
    ModelSpec,
    MoeSpec,
    Role,
    TensorSpec,
)

MIXER_PARTS = ("mamba", "mixer", "linear_attn", "conv")
OUTPUT_MODULES = (  # that return to the residual stream
    "o_proj out_proj dense c_proj wo down_proj fc2 w2 dense_4h_to_h fc_out output output_linear w_down".split()
)
# What transformers' modules of some architectures keep beside the usual, in eager form:
ACTIVATION_STEPS = {"gpt2": 3, "phi": 3, "gpt_oss": 3}  # the activation is several operations in Python
FLOAT32_NORMS = ("gemma", "gemma2", "gemma3", "gemma3_text", "olmo2", "gpt_oss")  # the weight multiplies in float32
CAPPED = ("gemma2",)  # a tanh bounds attention scores and logits


@dataclass(frozen=True, kw_only=True)
class SavedTensor:
    """One tensor kept for the backward pass. `over_heads`: tensor parallelism shares it; else all ranks keep it,
    unless sequence parallelism does.
    """

    name: str
    values_per_token: int
    value_bytes: int
    over_heads: bool = False

    def num_bytes(self, training: TrainingOptions) -> int:
        """Bytes on one device, of one micro-batch."""
        shared = self.over_heads or training.sequence_parallel
        total = training.tokens * self.values_per_token * self.value_bytes
        return -(-total // training.tensor_parallel) if shared else total


def saved_bytes(tensors: Iterable[SavedTensor], training: TrainingOptions) -> int:
    """Bytes of all `tensors` on one device."""
    return sum(tensor.num_bytes(training) for tensor in tensors)


def stored_tensors(model: ModelSpec, layer: LayerSpec, training: TrainingOptions) -> list[SavedTensor]:
    """What is kept from a layer's forward pass to its backward pass, after recomputation."""
    if training.recomputation == "full":
        stream_bytes = _Rules(model, layer, training).stream_bytes
        return [SavedTensor(name="layer input", values_per_token=model.hidden, value_bytes=stream_bytes)]
    return [t for t in layer_saved(model, layer, training) if not (training.recomputation == "selective" and _core(t))]


def layer_saved(model: ModelSpec, layer: LayerSpec, training: TrainingOptions) -> list[SavedTensor]:
    """All that a layer's operations keep, recomputed or not."""
    return _Rules(model, layer, training).layer()


def end_saved(model: ModelSpec, training: TrainingOptions) -> list[SavedTensor]:
    """What the final norm, the head and the loss keep: float32 log-probabilities of the whole vocabulary.

    A loss in chunks keeps none of them: it takes each chunk's gradient at once.
    """
    rules = _Rules(model, model.layers[-1], training)
    kept = rules.norm(model.final_norm, model.hidden, "final norm")
    kept.append(SavedTensor(name="labels", values_per_token=2, value_bytes=8))
    if training.lora is None:
        kept.append(rules.compute("head input", model.hidden))
    if training.loss_chunks == 1 and model.architecture in CAPPED:
        kept.append(rules.compute("capped logits", model.vocabulary, over_heads=True))
    if training.loss_chunks == 1:
        kept.append(
            SavedTensor(name="log-probabilities", values_per_token=model.vocabulary, value_bytes=4, over_heads=True)
        )
    return kept


def _core(tensor: SavedTensor) -> bool:
    """Whether selective recomputation drops it: the matrix of attention weights and what is made of it."""
    return tensor.name.startswith("attention weights")


class _Rules:
    """The formulas for one layer under one set of options."""

    def __init__(self, model: ModelSpec, layer: LayerSpec, training: TrainingOptions) -> None:
        self.model, self.spec, self.training = model, layer, training
        lora = training.lora
        self.casts = training.numerics.casts or (lora is not None and lora.nf4 and training.precision != "bf16")
        self.compute_bytes = training.numerics.compute_bytes
        self.stream_bytes = 4 if self.casts else self.compute_bytes
        self.eager = training.kernels == "eager"
        self.adapted = {t.name for t in adapted_matrices(layer, lora)} if lora else None
        self.linear = [t for t in layer.tensors if t.role in LINEAR_ROLES and len(t.shape) >= 2]

    def layer(self) -> list[SavedTensor]:
        kept = [t for norm in self._norms() for t in norm]
        attention = self.spec.attention
        if isinstance(attention, AttentionSpec) and self._is_falcon():
            kept += self.falcon_attention(attention)
        elif isinstance(attention, AttentionSpec):
            kept += self.grouped_attention(attention)
        elif isinstance(attention, LatentAttentionSpec):
            kept += self.latent_attention(attention)
        if self.spec.mixer is not None:
            kept += self.mixer()
        if isinstance(self.spec.mlp, MoeSpec):
            kept += self.experts(self.spec.mlp)
        elif self.spec.mlp is not None:
            kept += self.mlp(self.spec.mlp, self.spec.mlp.intermediate, "mlp", "matrix")
        if self.training.dropout:
            count = (self.spec.attention is not None) + (self.spec.mlp is not None)
            mask = SavedTensor(name="dropout masks", values_per_token=self.model.hidden, value_bytes=1)
            kept += [mask] * count
        return kept

    def compute(self, name: str, values: int, *, over_heads: bool = False) -> SavedTensor:
        """A tensor in the type that matrices are multiplied in."""
        return SavedTensor(name=name, values_per_token=values, value_bytes=self.compute_bytes, over_heads=over_heads)

    def norm(self, weight: TensorSpec, width: int, name: str, *, heads: int = 1) -> list[SavedTensor]:
        """What a norm keeps: LayerNorm its input, mean and deviation; RMSNorm in eager form three tensors."""
        over_heads = heads > 1
        bias = weight.name.removesuffix("weight") + "bias"
        layer_norm = any(t.name == bias for t in (*self.spec.tensors, *self.model.others))
        factors = SavedTensor(name=f"{name} factors", values_per_token=2 * heads, value_bytes=4, over_heads=over_heads)
        taken = SavedTensor(
            name=f"{name} input", values_per_token=width, value_bytes=self.stream_bytes, over_heads=over_heads
        )
        if layer_norm:
            return [taken, factors]
        factors = replace(factors, values_per_token=heads)
        if not self.eager:
            return [taken, factors]
        kept = [replace(taken, name=f"{name} input, float32", value_bytes=4), factors]
        if self.adapted is None:
            value_bytes = 4 if self.model.architecture in FLOAT32_NORMS else self.stream_bytes
            kept.append(replace(taken, name=f"{name} normalised", value_bytes=value_bytes))
        return kept

    def inputs(self, name: str, width: int, tensors: list[TensorSpec], *, shared: bool = False) -> list[SavedTensor]:
        """What linear layers keep of the input that they share. Where inputs are cast, each keeps its own copy.

        `shared`: somebody else keeps the same tensor already.
        """
        over_heads = any(module_name(t) in OUTPUT_MODULES for t in tensors)
        one = self.compute(name, width, over_heads=over_heads)
        if self.adapted is None:
            return [] if shared else [one] * (len(tensors) if self.casts else 1)
        adapted = [t for t in tensors if t.name in self.adapted]
        if not adapted or self.training.lora is None:
            return []
        low = self.compute(f"{name}, adapters' rank", self.training.lora.rank * len(adapted))
        if self.casts:
            return [low, *([] if shared else [one] * len(adapted))]
        if self.compute_bytes == 2 and self.training.precision != "bf16":
            return [low, *[replace(one, name=f"{name}, float32", value_bytes=4)] * len(adapted)]
        return [low, *([] if shared else [one])]

    def _norms(self) -> list[list[SavedTensor]]:
        """The layer's norms: of the residual stream, of each head's queries and keys, of latent vectors."""
        found = []
        for tensor in self.spec.tensors:
            if tensor.role != "norm" or not tensor.name.endswith("weight"):
                continue
            name, attention = module_name(tensor), self.spec.attention
            if name == "ln_mlp":  # takes what Falcon's other norm takes, and keeps
                found.append(self.norm(tensor, tensor.shape[0], name)[1:])
                continue
            per_head = isinstance(attention, AttentionSpec) and tensor.shape[0] == attention.head_dim
            if per_head and isinstance(attention, AttentionSpec) and name in ("q_norm", "k_norm"):
                heads = attention.num_heads if name == "q_norm" else attention.num_kv_heads
                found.append(self.norm(tensor, heads * attention.head_dim, name, heads=heads))
            else:
                found.append(self.norm(tensor, tensor.shape[0], name))
        return found

    def grouped_attention(self, attention: AttentionSpec) -> list[SavedTensor]:
        query, key = attention.num_heads * attention.head_dim, attention.num_kv_heads * attention.head_dim
        naive = self.training.attention == "naive"
        if naive and self.eager:
            key = query  # repeated for every head
        inner = self.inner("attention")
        kept = self.inputs("attention input", self.model.hidden, inner)
        kept += [
            self.compute("queries", query, over_heads=True),
            self.compute("keys", key, over_heads=True),
            self.compute("values", key, over_heads=True),
        ]
        rotated = all(t.role != "position" for t in self.model.others)
        if self.eager and rotated and any(t.shape[0] == query + 2 * key for t in inner):
            # Values are a view of one matrix's output, which keeps queries and keys as they were before rotation.
            kept.append(self.compute("queries and keys before rotation", query + key, over_heads=True))
        return kept + self.core(attention.num_heads, query)

    def falcon_attention(self, attention: AttentionSpec) -> list[SavedTensor]:
        """As transformers hands it to PyTorch: several key-value heads are repeated for all others and come with a
        mask for each layer; a single one no fused kernel takes, so all of it is done plainly in float32.
        """
        query = attention.num_heads * attention.head_dim
        kept = self.inputs("attention input", self.model.hidden, self.inner("attention"))
        parts = [self.compute(name, query, over_heads=True) for name in ("queries", "keys", "values")]
        if attention.num_kv_heads == 1:
            scores = self.compute("attention weights", attention.num_heads * self.training.context_tokens)
            kept += [replace(each, value_bytes=4, over_heads=True) for each in (*parts, scores)]
            return kept + self.inputs("attention output", query, self.outer("attention"))
        if attention.num_kv_heads == attention.num_heads:
            # Values are a view of one matrix's output, which keeps queries and keys as they were before rotation.
            parts.append(self.compute("queries and keys before rotation", 2 * query, over_heads=True))
        mask = self.compute("attention mask", self.training.context_tokens)
        return [*kept, *parts, mask, *self.core(attention.num_heads, query)]

    def latent_attention(self, attention: LatentAttentionSpec) -> list[SavedTensor]:
        """DeepSeek's attention, expanded to all heads as it is trained."""
        heads, hidden = attention.num_heads, self.model.hidden
        named = {module_name(t): t for t in self.inner("attention")}
        kept = []
        widths = {"q_b_proj": attention.query_rank or hidden, "kv_b_proj": attention.kv_rank}
        for name, width in widths.items():
            if name in named:
                kept += self.inputs(f"{name} input", width, [named.pop(name)])
        kept += self.inputs("attention input", hidden, list(named.values()))
        query = heads * (attention.nope_dim + attention.rope_dim)
        kept += [
            self.compute("queries", query, over_heads=True),
            self.compute("keys", query, over_heads=True),
            self.compute("values", heads * (attention.nope_dim + attention.value_dim), over_heads=True),
        ]
        return kept + self.core(heads, heads * attention.value_dim)

    def core(self, heads: int, output: int) -> list[SavedTensor]:
        """Attention proper: its matrix in the naive form, its output and one number a head in the flash form."""
        out = self.compute("attention output", output, over_heads=True)
        linear = self.outer("attention")
        if self.training.attention == "flash":
            factors = SavedTensor(name="attention log-sums", values_per_token=heads, value_bytes=4, over_heads=True)
            return [out, factors, *self.inputs("attention output", output, linear, shared=True)]
        scores = self.compute("attention weights", heads * self.training.context_tokens, over_heads=True)
        matrix = [scores]
        if self.eager and (self.compute_bytes != 4):
            matrix.append(replace(scores, name="attention weights, float32", value_bytes=4))
        if self.eager and self.model.architecture in CAPPED:
            matrix.append(replace(scores, name="attention weights, capped"))
        if self.training.dropout:
            matrix += [
                replace(scores, name="attention weights, dropout mask", value_bytes=1),
                replace(scores, name="attention weights, dropped"),
            ]
        return [*matrix, *self.inputs("attention output", output, linear)]

    def mlp(self, mlp: MlpSpec | MoeSpec, width: int, name: str, role: Role, *, copies: int = 1) -> list[SavedTensor]:
        """A feed-forward network of `width` whose matrices have `role`; it sees each token `copies` times."""
        inner = [t for t in self.inner("mlp") if t.role == role]
        outer = [t for t in self.outer("mlp") if t.role == role]
        kept = self.inputs(f"{name} input", self.model.hidden * copies, inner, shared=self._is_parallel_falcon())
        before = self.compute(f"{name} activation input", width * copies, over_heads=True)
        is_relu = mlp.activation == "relu" and not mlp.gated  # its derivative needs its output alone
        if not is_relu:
            kept.append(before)
        if mlp.gated:
            kept.append(replace(before, name=f"{name} up"))
        if self.eager:
            steps = mlp.gated + ACTIVATION_STEPS.get(self.model.architecture, 0)
            kept += [replace(before, name=f"{name} activation")] * steps
        after = self.inputs(f"{name} output", width * copies, outer)
        return kept + (after or [replace(before, name=f"{name} output")] * is_relu)

    def experts(self, moe: MoeSpec) -> list[SavedTensor]:
        """Experts see each token `experts_per_token` times; the router keeps a weight for each expert."""
        hidden, routed = self.model.hidden, moe.experts_per_token
        kept = self.inputs("router input", hidden, [t for t in self.linear if t.role == "router"])
        kept.append(SavedTensor(name="router weights", values_per_token=2 * moe.num_experts, value_bytes=4))
        kept += self.mlp(moe, moe.intermediate, "expert", "expert", copies=routed)
        kept.append(self.compute("experts' outputs", hidden * routed))
        if moe.shared_intermediate:
            kept += self.mlp(moe, moe.shared_intermediate, "shared expert", "matrix")
        return kept

    def mixer(self) -> list[SavedTensor]:
        """A recurrent layer: input and output of each of its matrices. Its own scan is taken to be recomputed."""
        kept = []
        for tensor in self._part("mixer"):
            kept.append(self.compute(f"{module_name(tensor)} input", tensor.shape[-1]))
            kept.append(self.compute(f"{module_name(tensor)} output", tensor.shape[-2], over_heads=True))
        return kept

    def _is_falcon(self) -> bool:
        return self.eager and self.model.architecture == "falcon" and self.training.attention == "flash"

    def _is_parallel_falcon(self) -> bool:
        """Whether attention and feed-forward network take the output of one norm."""
        return self._is_falcon() and sum(t.role == "norm" for t in self.spec.tensors) == 2  # a weight and a bias

    def inner(self, part: str) -> list[TensorSpec]:
        """Matrices that read the residual stream."""
        return [t for t in self._part(part) if module_name(t) not in OUTPUT_MODULES]

    def outer(self, part: str) -> list[TensorSpec]:
        """Matrices that write to it."""
        return [t for t in self._part(part) if module_name(t) in OUTPUT_MODULES]

    def _part(self, part: str) -> list[TensorSpec]:
        """The matrices of the layer's "mlp", "mixer" or "attention"."""
        return [t for t in self.linear if self._part_of(t) == part]

    def _part_of(self, tensor: TensorSpec) -> str:
        if in_mlp(tensor):
            return "mlp"
        parts = tensor.name.split(".")
        if self.spec.mixer is not None and (self.spec.attention is None or any(part in parts for part in MIXER_PARTS)):
            return "mixer"
        return "attention"
