"""Finds a model's tensors in a checkpoint under the names of `transformers`, and leaves none unexplained."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from residency.errors import FileError, UnsupportedError
from residency.formats import FORMATS, I32
from residency.models.configuration import configuration
from residency.models.packed import UNUSED_SUFFIXES as UNUSED_PARTS
from residency.models.packed import PackedMatrix, column_groups, find_packed
from residency.models.planned.quantized import quantization_scheme
from residency.spec.checkpoint import Checkpoint
from residency.spec.model import PackedSource, Rearrange, Role, SourceTensor, Split, TensorSpec

GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
GGUF_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    **dict.fromkeys(("mlp.gate", "block_sparse_moe.gate"), "ffn_gate_inp"),
    **dict.fromkeys(("mlp.experts.{}.gate_proj", "block_sparse_moe.experts.{}.w1"), "ffn_gate_exps"),
    **dict.fromkeys(("mlp.experts.{}.up_proj", "block_sparse_moe.experts.{}.w3"), "ffn_up_exps"),
    **dict.fromkeys(("mlp.experts.{}.down_proj", "block_sparse_moe.experts.{}.w2"), "ffn_down_exps"),
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
}
SPLITS: Mapping[str, Split] = {
    **dict.fromkeys(("q_proj", "gate_proj", "up_proj", "w1", "w3"), "rows"),
    **dict.fromkeys(("k_proj", "v_proj"), "kv_heads"),
    **dict.fromkeys(("o_proj", "down_proj", "w2"), "columns"),
}
# Where text models keep their tensors, alone and inside a model that also sees.
FOLDER_PREFIXES = (("model.", "model."), ("model.", "language_model.model."), ("model.", "model.language_model."))
UNUSED_PREFIXES = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")
UNUSED_SUFFIXES = (
    *("rotary_emb.inv_freq", "rope_freqs.weight"),  # computed from the configuration; read apart
    *UNUSED_PARTS,
)


def role_and_split(name: str) -> tuple[Role, Split]:
    """What the tensor `name` of a Llama-like model is for, and how tensor parallelism shares it."""
    *_, part, kind = name.split(".")
    if part in ("embed_tokens", "lm_head"):
        return ("embedding" if part == "embed_tokens" else "head"), "vocabulary"
    if part.endswith("norm"):
        return "norm", "replicated"
    if part in ("gate", "shared_expert_gate"):
        return "router", "replicated"
    split = SPLITS[part]
    if kind == "bias":
        return "bias", "replicated" if split == "columns" else split
    return ("expert" if ".experts." in name else "matrix"), split


class TensorFinder:
    """Hands out the tensors of one checkpoint, each checked against the shape that the configuration implies."""

    def __init__(self, checkpoint: Checkpoint, gguf_layer_names: Mapping[str, str] = GGUF_LAYER_NAMES) -> None:
        self._checkpoint = checkpoint
        self._gguf_layer_names = gguf_layer_names
        self._taken: set[str] = set()
        self._orders: dict[str, TensorSpec] = {}
        self._order_names: dict[tuple[str, bytes], str] = {}
        is_folder = checkpoint.kind == "safetensors"
        self._scheme = quantization_scheme(configuration(checkpoint)) if is_folder else None
        prefixes = (new for _, new in FOLDER_PREFIXES if new + "embed_tokens.weight" in checkpoint.tensors)
        self._prefix = next(prefixes, "model.")

    def file_name(self, name: str) -> str:
        """What the checkpoint calls the tensor `name`."""
        if self._checkpoint.kind == "safetensors":
            if name.startswith("model."):
                return self._prefix + name.removeprefix("model.")
            return "language_model." + name if self._prefix.startswith("language_model.") else name
        stem, _, kind = name.rpartition(".")
        if stem in GGUF_NAMES:
            return f"{GGUF_NAMES[stem]}.{kind}"
        _, _, layer, part = stem.split(".", 3)
        return f"blk.{layer}.{self._gguf_layer_names[part]}.{kind}"

    def rows(self, name: str) -> int:
        """Rows of the matrix `name`. FileError if it is missing."""
        return self._source(self.file_name(name)).shape[0]

    def take(
        self, name: str, shape: tuple[int, ...], rearrange: Rearrange = Rearrange.NONE, heads: int | None = None
    ) -> TensorSpec:
        """The tensor `name`. FileError if it is missing or not of `shape`."""
        file_name = self.file_name(name)
        if (found := find_packed(self._checkpoint, self._scheme, file_name, shape)) is not None:
            return self._packed(name, shape, found)
        source = self._source(file_name)
        if self._checkpoint.kind == "gguf" and shape == (1, *source.shape):
            source = replace(source, shape=shape)  # a matrix of one row is kept as a vector
        self._check(source, shape)
        role, split = role_and_split(name)
        return TensorSpec(
            name=name,
            shape=shape,
            format=source.format,
            rearrange=rearrange,
            source=source,
            heads=heads,
            role=role,
            split=split,
        )

    def with_orders(self, tensors: Sequence[TensorSpec]) -> Iterator[TensorSpec]:
        """The tensors, and before each matrix whose columns are in an order of its own, "….order" that tells which."""
        for tensor in tensors:
            if tensor.packed is not None and (order := self._orders.pop(tensor.packed.order or "", None)) is not None:
                yield order
            yield tensor

    def _packed(self, name: str, shape: tuple[int, ...], found: PackedMatrix) -> TensorSpec:
        self._taken |= {part.name for part in found.source.parts}
        role, split = role_and_split(name)
        source = replace(found.source, order=self._order(name, shape[1], found.source))
        return TensorSpec(name=name, shape=shape, format=found.format, packed=source, role=role, split=split)

    def _order(self, name: str, columns: int, source: PackedSource) -> str | None:
        """The name of the order of a matrix' columns; matrices of a layer with the same one share it."""
        groups = column_groups(source, columns)
        if groups is None:
            return None
        assert source.group_index is not None
        if ".layers." not in name:
            raise UnsupportedError(
                f"{self._checkpoint.path} holds {name} with columns in another order than theirs, not supported here."
            )
        key = name.rpartition(".self_attn.")[0] or name.rpartition(".mlp.")[0], groups
        order = self._order_names.setdefault(key, name.removesuffix(".weight") + ".order")
        if order.removesuffix(".order") == name.removesuffix(".weight"):
            self._orders[order] = TensorSpec(
                name=order, shape=(columns,), format=I32, source=source.group_index, role="other"
            )
        return order

    def take_copies(self, name: str, copies: int, shape: tuple[int, ...]) -> TensorSpec:
        """The tensors that `name` stands for, "{}" in it for the number of the copy; a GGUF file may hold them as one.

        FileError if one is missing or not of `shape`, UnsupportedError if they are not all in one format.
        """
        sources = self._copies(name, copies, shape)
        formats = {source.format for source in sources}
        if len(formats) > 1:
            names = " and ".join(sorted(each.name for each in formats))
            raise UnsupportedError(f"{self._checkpoint.path} holds the copies of {name} in {names}, not all alike.")
        role, split = role_and_split(name)
        return TensorSpec(
            name=name,
            shape=shape,
            format=formats.pop(),
            role=role,
            split=split,
            copies=copies,
            copy_sources=tuple(each.source if isinstance(each, PackedMatrix) else each for each in sources),
        )

    def _copies(self, name: str, copies: int, shape: tuple[int, ...]) -> Sequence[SourceTensor | PackedMatrix]:
        if self._checkpoint.kind == "safetensors":
            names = [self.file_name(name.replace("{}", str(number))) for number in range(copies)]
            if (packed := [self._packed_copy(each, shape) for each in names]) and None not in packed:
                return [each for each in packed if each is not None]
        else:
            merged = self.file_name(name)
            if (whole := self._checkpoint.tensors.get(merged)) is not None:
                self._check(whole, (copies, *shape))
                each_bytes = whole.format.bytes_of(shape)
                starts = range(whole.offset, whole.offset + copies * each_bytes, each_bytes)
                return [replace(whole, offset=start, shape=shape) for start in starts]
            names = [merged.replace("_exps.", f".{number}.") for number in range(copies)]  # files from before 2024-04
        sources = [self._source(each) for each in names]
        for source in sources:
            self._check(source, shape)
        return sources

    def _packed_copy(self, file_name: str, shape: tuple[int, ...]) -> PackedMatrix | None:
        """A copy that is a matrix of integers. UnsupportedError where its columns are in another order than theirs."""
        found = find_packed(self._checkpoint, self._scheme, file_name, shape)
        if found is None:
            return None
        if column_groups(found.source, shape[1]) is not None:
            raise UnsupportedError(
                f"{self._checkpoint.path} holds the expert {file_name} with columns in an order of its own, which is "
                "not run; quantize the model without act-order, or run a GGUF file."
            )
        self._taken |= {part.name for part in found.source.parts}
        return found

    def _check(self, source: SourceTensor, shape: tuple[int, ...]) -> None:
        """Mark a tensor as taken. FileError for another shape, UnsupportedError for a format that is not run."""
        if source.shape != shape:
            raise FileError(
                f"{self._checkpoint.path} holds {source.name} of shape {source.shape}, "
                f"and its configuration asks for {shape}; fetch the model again."
            )
        if source.format.name not in FORMATS:
            raise UnsupportedError(
                f"{self._checkpoint.path} holds {source.name} in {source.format.name}, which can be planned and not "
                f"yet run; run a file in {', '.join(FORMATS)}."
            )
        if len(shape) == 1 and not source.format.is_float:
            raise UnsupportedError(
                f"{self._checkpoint.path} holds {source.name} in {source.format.name}, not as floats."
            )
        self._taken.add(source.name)

    def refuse_unused(self, also_unused: Iterable[str] = ()) -> None:
        """UnsupportedError if the checkpoint holds a tensor that no part of the model has taken."""
        unused = self._checkpoint.tensors.keys() - self._taken - {self.file_name(name) for name in also_unused}
        for name in sorted(unused):
            is_empty_bias = (
                name.removesuffix(".bias") + ".qweight" in self._checkpoint.tensors
            )  # GPTQ's tools write them
            if not is_empty_bias and not name.startswith(UNUSED_PREFIXES) and not name.endswith(UNUSED_SUFFIXES):
                raise UnsupportedError(
                    f"{self._checkpoint.path} holds the tensor {name[:80]!r}, which {self._checkpoint.architecture} "
                    "models here have no use for; the model is of a variant that is not supported."
                )

    def _source(self, file_name: str) -> SourceTensor:
        source = self._checkpoint.tensors.get(file_name)
        if source is None:
            raise FileError(f"{self._checkpoint.path} lacks the tensor {file_name}; fetch the model again.")
        return source
