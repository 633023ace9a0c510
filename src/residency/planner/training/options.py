"""What a training run is asked to be. Whatever cannot be is refused here, in one sentence."""

from dataclasses import dataclass
from typing import Literal

from residency.errors import UsageError

Optimizer = Literal["adamw", "adam8bit", "sgd", "adafactor", "lion", "muon"]
Recomputation = Literal["none", "selective", "full"]
Attention = Literal["flash", "naive"]
Kernels = Literal["eager", "fused"]
PrecisionName = Literal["bf16-mixed", "bf16-mixed-fp32-gradients", "bf16-fp32-states", "bf16", "autocast", "fp32"]


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Bytes of a value in each class, and what the forward pass computes in.

    `casts`: weights are float32 and copied to 16 bits for each forward pass, and so is each linear layer's input
    (torch.autocast); the residual stream stays float32.
    """

    weight_bytes: int
    gradient_bytes: int
    master_bytes: int
    state_bytes: int
    compute_bytes: int
    casts: bool = False

    @property
    def stream_bytes(self) -> int:
        """Bytes of a value of the residual stream."""
        return 4 if self.casts else self.compute_bytes


# float16 takes the bytes of bfloat16.
PRECISIONS: dict[str, Precision] = {
    # 2 + 2 + 4 + 4 + 4 = 16 bytes a parameter: ZeRO (arXiv 1910.02054, section 3.1), DeepSpeed.
    "bf16-mixed": Precision(weight_bytes=2, gradient_bytes=2, master_bytes=4, state_bytes=4, compute_bytes=2),
    # 2 + 4 + 4 + 4 + 4 = 18 bytes: Megatron-LM, which sums gradients in float32.
    "bf16-mixed-fp32-gradients": Precision(
        weight_bytes=2, gradient_bytes=4, master_bytes=4, state_bytes=4, compute_bytes=2
    ),
    # 2 + 2 + 4 + 4 = 12 bytes: what introductions count, without master weights.
    "bf16-fp32-states": Precision(weight_bytes=2, gradient_bytes=2, master_bytes=0, state_bytes=4, compute_bytes=2),
    # 2 + 2 + 2 + 2 = 8 bytes: torch.optim keeps its states in the parameters' type.
    "bf16": Precision(weight_bytes=2, gradient_bytes=2, master_bytes=0, state_bytes=2, compute_bytes=2),
    # 4 + 4 + 4 + 4 = 16 bytes and the 16-bit copies: torch.autocast over float32 parameters.
    "autocast": Precision(weight_bytes=4, gradient_bytes=4, master_bytes=0, state_bytes=4, compute_bytes=2, casts=True),
    "fp32": Precision(weight_bytes=4, gradient_bytes=4, master_bytes=0, state_bytes=4, compute_bytes=4),
}


# All matrices but the feed-forward network's, or all in the layers.
TARGET_GROUPS = ("attention", "all-linear")


@dataclass(frozen=True, kw_only=True)
class LoraOptions:
    """Low-rank adapters (arXiv 2106.09685) beside frozen matrices; QLoRA (arXiv 2305.14314) keeps those in NF4."""

    rank: int
    targets: tuple[str, ...] = ("attention",)  # names of modules, such as "q_proj", or of TARGET_GROUPS
    nf4: bool = False
    double_quantization: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UsageError(f"adapters of rank {self.rank} hold nothing; give a rank of at least 1, such as 16.")
        if self.double_quantization and not self.nf4:
            raise UsageError("double quantization packs the scales of NF4, which is off; ask for NF4 as well.")
        if not self.targets:
            raise UsageError('adapters need matrices to sit beside; name modules such as q_proj, or "attention".')


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """One training run. Batch is one device's: sequences of a micro-batch in each data-parallel replica."""

    optimizer: Optimizer = "adamw"
    precision: PrecisionName = "bf16-mixed"
    batch_sequences: int = 1
    context_tokens: int = 2048
    accumulation_steps: int = 1  # micro-batches of a step
    recomputation: Recomputation = "none"
    attention: Attention = "flash"
    kernels: Kernels = "eager"  # "eager": transformers' modules as PyTorch runs them; "fused": one kernel a block
    dropout: bool = False
    loss_chunks: int = 1  # into how many parts the loss cuts the tokens
    tensor_parallel: int = 1
    sequence_parallel: bool = False  # norms and dropouts are shared by the tensor-parallel ranks as well
    pipeline_parallel: int = 1
    data_parallel: int = 1
    zero_stage: int = 0  # 1: optimizer states; 2: gradients too; 3 (FSDP): weights too
    lora: LoraOptions | None = None
    offload_optimizer: bool = False
    offload_parameters: bool = False

    def __post_init__(self) -> None:
        self._refuse_unknown()
        self._refuse_counts()
        self._refuse_combinations()

    @property
    def tokens(self) -> int:
        """Tokens of one micro-batch."""
        return self.batch_sequences * self.context_tokens

    @property
    def numerics(self) -> Precision:
        """The bytes of each value."""
        return PRECISIONS[self.precision]

    @property
    def devices(self) -> int:
        """Devices that the degrees ask for."""
        return self.tensor_parallel * self.pipeline_parallel * self.data_parallel

    def shards(self, stage: int) -> int:
        """Among how many data-parallel ranks ZeRO shares what it begins to share at `stage`."""
        return self.data_parallel if self.zero_stage >= stage else 1

    def _refuse_unknown(self) -> None:
        known: dict[str, tuple[str, ...]] = {
            "optimizer": ("adamw", "adam8bit", "sgd", "adafactor", "lion", "muon"),
            "precision": tuple(PRECISIONS),
            "recomputation": ("none", "selective", "full"),
            "attention": ("flash", "naive"),
            "kernels": ("eager", "fused"),
            "zero_stage": ("0", "1", "2", "3"),
        }
        for name, choices in known.items():
            value = str(getattr(self, name))
            if value not in choices:
                raise UsageError(
                    f"{value[:40]!r} is no known {name.replace('_', ' ')}; choose one of {', '.join(choices)}."
                )

    def _refuse_counts(self) -> None:
        names = "batch_sequences context_tokens accumulation_steps loss_chunks"
        for name in (names + " tensor_parallel pipeline_parallel data_parallel").split():
            if getattr(self, name) < 1:
                raise UsageError(f"{name.replace('_', ' ')} cannot be {getattr(self, name)}; give at least 1.")

    def _refuse_combinations(self) -> None:
        if self.zero_stage and self.optimizer in ("adam8bit", "adafactor"):
            reason = "blocks of 256 values" if self.optimizer == "adam8bit" else "rows and columns of whole matrices"
            raise UsageError(
                f"{self.optimizer} keeps states of {reason}, which ZeRO stage {self.zero_stage} would cut; "
                "choose adamw, lion, sgd or muon, or stage 0."
            )
        if self.zero_stage >= 2 and self.pipeline_parallel > 1:
            raise UsageError(
                f"ZeRO stage {self.zero_stage} shares gradients that a pipeline sums over micro-batches; "
                "choose stage 1, or a pipeline of 1."
            )
        if self.sequence_parallel and self.tensor_parallel == 1:
            raise UsageError(
                "sequence parallelism shares among tensor-parallel ranks and there is 1; ask for --tp 2 or more."
            )
        if self.offload_parameters and self.zero_stage < 3:
            raise UsageError(
                f"parameters go to RAM layer by layer, which needs ZeRO stage 3 and not {self.zero_stage}; "
                "choose stage 3, or keep them on the device."
            )
        if self.lora and self.lora.nf4 and (self.tensor_parallel > 1 or self.pipeline_parallel > 1):
            raise UsageError(
                "NF4 matrices are not split among tensor- or pipeline-parallel ranks; use data parallelism."
            )
