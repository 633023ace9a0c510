"""Compiles the device's kernels for an H100, as operators launch them on a model of 8B, without having one.

Run: `python -m support.hopper`; prints a line of JSON for each kernel: what it takes, and which instructions it uses.
"""

import json
import re
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from residency.formats.planes import PLANE_LAYOUTS, PlaneLayout
from residency.kernels.attention import attention
from residency.kernels.device import DeviceExperts, DeviceMatrix, DevicePaged, DeviceStep, StepShape, on_device
from residency.kernels.embed import embed
from residency.kernels.experts import combine, fetch, guess, multiply, route
from residency.kernels.gate import gated
from residency.kernels.matmul import linear
from residency.kernels.norm import rms_norm
from residency.kernels.recorder import Rows
from residency.kernels.rotary import LayerPages, rotate_and_store
from residency.spec.model import AttentionSpec, MoeSpec
from residency.store.device import DTYPES
from residency.store.device_experts import AsideStream

INT4 = PlaneLayout(code_bits=4, group_columns=128, zero=8, scales="half")
MULTIPROCESSORS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM = 132, 4096, 32, 8, 128
BIN = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
INSTRUCTIONS = ("HGMMA", "HMMA", "LDG.E.128", "LDL", "STL")


class _Hopper:
    """A driver that knows its target and has no device."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def main() -> None:
    """Launch every operator, which here compiles its kernels."""
    compiled: list[tuple[str, Any]] = []
    driver.set_active(_Hopper())

    def launched(kernel: Any, grid: tuple[int, ...]) -> Any:
        return lambda *words, **named: compiled.append(
            (kernel.__name__, kernel.run(*words, grid=grid, warmup=True, **named))
        )

    JITFunction.__getitem__ = launched
    for layout in (PLANE_LAYOUTS["Q4_K"], PLANE_LAYOUTS["Q6_K"], PLANE_LAYOUTS["Q8_0"], INT4):
        for tokens in (1, 8, 64, 300):
            _product(layout, tokens)
    for tokens in (1, 8, 64, 512):
        _experts(None, tokens)
        _experts(INT4, tokens)
    for kv_format, value_bytes in (("BF16", 2), ("INT8", 1), ("FP8", 1)):
        _attention(kv_format, value_bytes)
    _rest()
    for name, kernel in compiled:
        print(json.dumps({"kernel": name, "shared": kernel.metadata.shared, **_usage(kernel.asm["cubin"])}))


def _rows(tokens: int, columns: int = HIDDEN) -> Any:
    return torch.empty(tokens, columns, dtype=torch.bfloat16)


def _step(tokens: int, **buffers: Any) -> DeviceStep:
    shape = StepShape(tokens=tokens, sampled=tokens, logits=tokens, items=2)
    return DeviceStep(buffers, shape, multiprocessors=MULTIPROCESSORS)


def _matrix(layout: PlaneLayout) -> Any:
    shapes = layout.shapes(HIDDEN, HIDDEN)
    planes = {name: torch.empty(plane.shape, dtype=DTYPES[plane.dtype]) for name, plane in shapes.items()}
    return DeviceMatrix(rows=HIDDEN, columns=HIDDEN, layout=layout, planes=planes)


def _product(layout: PlaneLayout, tokens: int) -> None:
    buffers = {"matmul_partials": torch.empty(1), "matmul_slab": _rows(1, HIDDEN * HIDDEN)[0]}
    linear(_step(tokens, **buffers), Rows(_rows(tokens)), _matrix(layout), _rows(tokens))


def _experts(layout: PlaneLayout | None, tokens: int) -> None:
    """Of Mixtral's count."""
    spec = MoeSpec(num_experts=8, experts_per_token=2, intermediate=HIDDEN, activation="silu")
    whole = (
        _matrix(layout)
        if layout is not None
        else DeviceMatrix(rows=HIDDEN, columns=HIDDEN, layout=None, planes={"codes": _rows(HIDDEN)})
    )
    experts: Any = DeviceExperts(spec=spec, gate=whole, up=whole, down=whole)
    words = {name: torch.empty(16, dtype=torch.int32) for name in ("expert_choices", "expert_rows", "expert_blocks")}
    step = _step(
        tokens,
        positions=torch.empty(tokens, dtype=torch.int64),
        expert_weights=torch.empty(16),
        **words,
        **{name: _rows(2 * tokens) for name in ("expert_gate", "expert_up", "expert_out")},
    )
    x: Any = Rows(_rows(tokens))
    route(step, _rows(tokens, 8), spec, torch.empty(8, dtype=torch.int32))  # type: ignore[arg-type]
    multiply(step, x, HIDDEN, experts)
    in_ram: Any = _paged(step, spec)
    on_disk: Any = replace(in_ram, table=torch.zeros(8, dtype=torch.int32), read=lambda copies: None)
    for each in (in_ram, on_disk):
        paged = replace(experts, paged=each)
        fetch(step, paged, each)
        guess(step, _rows(tokens, 8), paged, each)
    multiply(step, x, HIDDEN, paged)
    combine(step, spec, HIDDEN, _rows(tokens), None)


def _paged(step: DeviceStep, spec: MoeSpec) -> DevicePaged:
    """Two layers' experts in slots."""
    per_expert = dict.fromkeys(("expert_places", "experts_used", "experts_guessed"), (2, spec.num_experts))
    shapes: dict[str, tuple[int, ...]] = per_expert | {
        "experts_missed": (2, spec.num_experts),
        "expert_order": (2 * spec.num_experts,),
        "expert_occupants": (2 * spec.num_experts,),
        "expert_turn": (1,),
        "expert_copies": (2, 1 + 2 * spec.num_experts),
    }
    made: dict[str, Any] = {name: torch.zeros(shape, dtype=torch.int32) for name, shape in shapes.items()}
    step.buffers.update(made)
    words = torch.empty(2 * spec.num_experts, 1 << 10, dtype=torch.int64)
    aside = AsideStream("cpu")
    return DevicePaged(layer=1, before=0, first=spec.num_experts, homes=words, slots=words, words=1 << 10, aside=aside)


def _attention(kv_format: Any, value_bytes: int) -> None:
    spec = AttentionSpec(num_heads=HEADS, num_kv_heads=KV_HEADS, head_dim=HEAD_DIM, scale=0.1)
    page_bytes = 2 * KV_HEADS * 16 * (HEAD_DIM * value_bytes + 2 * (kv_format == "INT8"))
    words: Any = {
        "pages": torch.empty(64, page_bytes, dtype=torch.uint8),
        "slots": torch.zeros(8, dtype=torch.int64),
        "tables": torch.zeros(8, 64, dtype=torch.int32),
    }
    cache = LayerPages(**words, number_format=kv_format)
    step = _step(
        8,
        attended=_rows(8),
        positions=torch.zeros(8, dtype=torch.int64),
        items=torch.zeros(2, 4, dtype=torch.int32),
        attention_partials=torch.empty(1),
    )
    q, k, angles = _rows(8), _rows(8, KV_HEADS * HEAD_DIM), torch.empty(64, HEAD_DIM)
    rotate_and_store(step, spec, q, k, k, angles, cache)  # type: ignore[arg-type]
    attention(step, spec, q, cache)


def _rest() -> None:
    step = _step(8, normed=_rows(8), token_ids=torch.zeros(8, dtype=torch.int64))
    embed(step, _matrix(PLANE_LAYOUTS["Q6_K"]), 1.0, _rows(8))
    rms_norm(step, _rows(8), torch.empty(HIDDEN), 1e-5, into="normed")  # type: ignore[arg-type]
    gated(step, _rows(8), _rows(8), "silu", HIDDEN, "")
    on_device("sample").draw(_rows(8, 128256), torch.empty(8, 5), torch.empty(8, dtype=torch.int64))


def _usage(cubin: bytes) -> dict[str, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        told, code = (
            subprocess.run([BIN / "cuobjdump", option, file.name], capture_output=True, text=True, check=True).stdout
            for option in ("-res-usage", "-sass")
        )
    taken = {name.lower(): int(number) for name, number in re.findall(r"(REG|STACK):(\d+)", told)}
    return taken | {name: len(re.findall(rf"\b{re.escape(name)}", code)) for name in INSTRUCTIONS}


if __name__ == "__main__":
    main()
