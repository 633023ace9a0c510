"""Number formats: bits, block layout, pack and unpack."""

from residency.formats.format import (
    BF16,
    F16,
    F32,
    FORMATS,
    Q4_0,
    Q4_1,
    Q4_K,
    Q5_0,
    Q5_1,
    Q5_K,
    Q6_K,
    Q8_0,
    Format,
    format_named,
)
from residency.formats.rows import pack_rows, unpack_rows

__all__ = [
    "BF16",
    "F16",
    "F32",
    "FORMATS",
    "Format",
    "Q4_0",
    "Q4_1",
    "Q4_K",
    "Q5_0",
    "Q5_1",
    "Q5_K",
    "Q6_K",
    "Q8_0",
    "format_named",
    "pack_rows",
    "unpack_rows",
]
