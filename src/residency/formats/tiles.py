"""The kernels' layout of a matrix: tiles of 16 rows, so that a lane of a 512-bit vector is a row.

A matrix of `rows` x `columns` becomes ceil(rows / 16) tiles, each a run of blocks along the columns; the block of a
tile holds the same bits as the 16 blocks of its rows, rearranged:

    codes     per group of 32 columns four vectors of 64 bytes; byte 4 r + i of vector q holds, for row r, the code of
              column 8 q + i in its low nibble and of column 8 q + 4 + i in its high nibble (8-bit codes: eight vectors,
              vector p holds columns 4 p + i)
    pairs     codes' two low bits, of formats with two or three: two vectors for a group of 32 columns; the pair of bits
              k of byte 4 r + i of vector h holds, for row r, the code of column 16 h + 4 k + i
    planes    the codes' bits above those: bit (or pair of bits) k of byte 4 r + i of a plane belongs to column 4 k + i
              of the 32 (or 16)
    scales    one value for each of the 16 rows, group after group

Codes are unsigned; Q8_0's are shifted by 128. Float formats keep the 16 values of a column together. Rows missing from
the last tile are zero.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from residency.formats.format import Format
from residency.formats.grouped import GroupedFormat, packed_codes, unpacked_codes

TILE_ROWS = 16
_LOW, _FOUR = np.uint8(15), np.uint8(4)  # bytes, so that results stay bytes

Bytes = npt.NDArray[np.uint8]
Lanes = npt.NDArray[np.int64]
Codec = tuple[Callable[[Bytes], list[Bytes]], Callable[[Bytes, Lanes], list[Bytes]]]


def tile_rows(fmt: Format, rows_RB: Bytes) -> Bytes:
    """Rows in the format's own layout (rows, row_bytes) to tiles (tiles, tile_bytes)."""
    missing = -len(rows_RB) % TILE_ROWS
    if missing:
        rows_RB = np.concatenate([rows_RB, np.zeros((missing, rows_RB.shape[1]), np.uint8)])
    tiles = len(rows_RB) // TILE_ROWS
    if fmt.is_float:
        return _tile_floats(fmt, rows_RB.reshape(tiles, TILE_ROWS, -1))
    blocks = rows_RB.reshape(tiles, TILE_ROWS, -1, fmt.block_bytes).transpose(0, 2, 1, 3)
    return np.concatenate(_codec(fmt)[0](blocks), axis=2).reshape(tiles, -1)


def untile_rows(fmt: Format, tiles_TB: Bytes, rows: npt.NDArray[np.int64]) -> Bytes:
    """The given rows of a tiled matrix, in the format's own layout (len(rows), row_bytes)."""
    tiles = tiles_TB[rows // TILE_ROWS]
    lanes = rows % TILE_ROWS
    if fmt.is_float:
        return _untile_floats(fmt, tiles, lanes)
    blocks = tiles.reshape(len(rows), -1, TILE_ROWS * fmt.block_bytes)
    return np.concatenate(_codec(fmt)[1](blocks, lanes), axis=2).reshape(len(rows), -1)


def _tile_floats(fmt: Format, tiles_TRB: Bytes) -> Bytes:
    tiles = tiles_TRB.reshape(len(tiles_TRB), TILE_ROWS, -1, fmt.block_bytes)
    return np.ascontiguousarray(tiles.transpose(0, 2, 1, 3)).reshape(len(tiles), -1)


def _untile_floats(fmt: Format, tiles_NB: Bytes, lanes: Lanes) -> Bytes:
    values = tiles_NB.reshape(len(tiles_NB), -1, TILE_ROWS, fmt.block_bytes)
    return values[np.arange(len(lanes)), :, lanes].reshape(len(lanes), -1)


# Below: blocks_ABRX are the 16 rows' blocks of a tile (tiles, blocks, 16, block_bytes); packing returns the parts of
# the tile's block in order, each (tiles, blocks, bytes). Unpacking takes (rows, blocks, tile block bytes) and each
# row's lane.


def _nibbles(codes_ABRC: Bytes) -> Bytes:
    """Codes (…, 16, columns) to nibble vectors (…, bytes), groups of 8 columns apart."""
    a, b, r, c = codes_ABRC.shape
    split = codes_ABRC.reshape(a, b, r, c // 8, 2, 4)
    packed = (split[..., 0, :] & _LOW) | ((split[..., 1, :] & _LOW) << _FOUR)
    return packed.transpose(0, 1, 3, 2, 4).reshape(a, b, -1)


def _from_nibbles(packed_ABX: Bytes, lanes: Lanes) -> Bytes:
    a, b, _ = packed_ABX.shape
    mine = packed_ABX.reshape(a, b, -1, TILE_ROWS, 4)[np.arange(a), :, :, lanes]
    return np.stack([mine & _LOW, mine >> _FOUR], axis=3).reshape(a, b, -1)


def _planes(codes_ABRC: Bytes, bits: int, above: int = 4) -> Bytes:
    """The `bits` bits above the first `above`, of `8 // bits` times four columns in each vector."""
    a, b, r, c = codes_ABRC.shape
    fields = (codes_ABRC >> np.uint8(above) & np.uint8((1 << bits) - 1)).reshape(
        a, b, r, c // (32 // bits), 8 // bits, 4
    )
    shifts = (np.arange(8 // bits, dtype=np.uint8) * bits)[:, None]
    packed: Bytes = np.bitwise_or.reduce(fields << shifts, axis=4)
    return packed.transpose(0, 1, 3, 2, 4).reshape(a, b, -1)


def _from_planes(packed_ABX: Bytes, lanes: Lanes, bits: int, above: int = 4) -> Bytes:
    a, b, _ = packed_ABX.shape
    mine = packed_ABX.reshape(a, b, -1, TILE_ROWS, 4)[np.arange(a), :, :, lanes]
    shifts = (np.arange(8 // bits, dtype=np.uint8) * bits)[:, None]
    fields = (mine[:, :, :, None, :] >> shifts) & ((1 << bits) - 1)
    return (fields << above).reshape(a, b, -1).astype(np.uint8)


def _by_row(part_ABRX: Bytes, value_bytes: int) -> Bytes:
    """Scales of each row, grouped: value after value, the 16 rows together."""
    a, b, r, _ = part_ABRX.shape
    return part_ABRX.reshape(a, b, r, -1, value_bytes).transpose(0, 1, 3, 2, 4).reshape(a, b, -1)


def _from_row(part_ABX: Bytes, lanes: Lanes, value_bytes: int) -> Bytes:
    a, b, _ = part_ABX.shape
    return part_ABX.reshape(a, b, -1, TILE_ROWS, value_bytes)[np.arange(a), :, :, lanes].reshape(a, b, -1)


def _halves(nibbles: Bytes) -> Bytes:
    """ggml's order of 32 codes: low nibbles are the first half, high nibbles the second."""
    return np.concatenate([nibbles & _LOW, nibbles >> _FOUR], axis=-1)


def _to_halves(codes: Bytes) -> Bytes:
    half = codes.shape[-1] // 2
    return codes[..., :half] | (codes[..., half:] << _FOUR)


def _small(scale_bytes: int, has_plane: bool) -> Codec:
    """Q4_0, Q4_1, Q5_0, Q5_1, IQ4_NL, MXFP4: scale (and minimum), fifth bits, nibbles."""
    each_bytes = min(scale_bytes, 2)

    def pack(blocks: Bytes) -> list[Bytes]:
        scales = blocks[..., :scale_bytes]
        codes = _halves(blocks[..., -16:])
        if not has_plane:
            return [_nibbles(codes), _by_row(scales, each_bytes)]
        high = np.unpackbits(blocks[..., scale_bytes : scale_bytes + 4], axis=-1, bitorder="little")
        codes = codes | (high << _FOUR)
        return [_nibbles(codes), _planes(codes, 1), _by_row(scales, each_bytes)]

    def unpack(blocks: Bytes, lanes: Lanes) -> list[Bytes]:
        scales = _from_row(blocks[..., 320 if has_plane else 256 :], lanes, each_bytes)
        packed = _to_halves(_from_nibbles(blocks[..., :256], lanes))
        if not has_plane:
            return [scales, packed]
        high = _from_planes(blocks[..., 256:320], lanes, 1) >> _FOUR
        return [scales, np.packbits(high, axis=-1, bitorder="little"), packed]

    return pack, unpack


def _pack_q8_0(blocks: Bytes) -> list[Bytes]:
    return [_by_row(blocks[..., 2:] ^ np.uint8(0x80), 4), _by_row(blocks[..., :2], 2)]


def _unpack_q8_0(blocks: Bytes, lanes: Lanes) -> list[Bytes]:
    return [_from_row(blocks[..., 512:], lanes, 2), _from_row(blocks[..., :512], lanes, 4) ^ np.uint8(0x80)]


def _k(has_plane: bool) -> Codec:
    """Q4_K, Q5_K: super-scale and super-minimum, 12 bytes of 6-bit scales and minima, fifth bits, nibbles."""

    def pack(blocks: Bytes) -> list[Bytes]:
        nibbles = blocks[..., -128:].reshape(*blocks.shape[:3], 4, 32)
        codes = _halves(nibbles).reshape(*blocks.shape[:3], 256)
        tail = [_by_row(blocks[..., 4:16], 4), _by_row(blocks[..., :4], 2)]
        if not has_plane:
            return [_nibbles(codes), *tail]
        bits = (blocks[..., 16:48][..., None, :] >> np.arange(8, dtype=np.uint8)[:, None]) & np.uint8(1)
        codes = codes | (bits.reshape(codes.shape) << _FOUR)
        return [_nibbles(codes), _planes(codes, 1), *tail]

    def unpack(blocks: Bytes, lanes: Lanes) -> list[Bytes]:
        tail = 2560 if has_plane else 2048
        codes = _from_nibbles(blocks[..., :2048], lanes)
        nibbles = _to_halves(codes.reshape(*codes.shape[:2], 4, 64)).reshape(*codes.shape[:2], 128)
        head = [_from_row(blocks[..., tail + 192 :], lanes, 2), _from_row(blocks[..., tail : tail + 192], lanes, 4)]
        if not has_plane:
            return [*head, nibbles]
        high = (_from_planes(blocks[..., 2048:2560], lanes, 1) >> _FOUR).reshape(*codes.shape[:2], 8, 32)
        bits = np.bitwise_or.reduce(high << np.arange(8, dtype=np.uint8)[:, None], axis=2)
        return [*head, bits, nibbles]

    return pack, unpack


def _pack_q6_k(blocks: Bytes) -> list[Bytes]:
    shape = blocks.shape[:3]
    nibbles = blocks[..., :128].reshape(*shape, 2, 64)
    low = np.concatenate([nibbles & _LOW, nibbles >> _FOUR], axis=-1)  # columns 0-63 low, 64-127 high, of each half
    pairs = blocks[..., 128:192].reshape(*shape, 2, 1, 32) >> np.array([[0], [2], [4], [6]], np.uint8)
    codes = (low | ((pairs & 3).reshape(*shape, 2, 128) << 4)).reshape(*shape, 256)
    a, b = shape[:2]
    body = np.concatenate(
        [_nibbles(codes).reshape(a, b, 16, 128), _planes(codes, 2).reshape(a, b, 16, 64)], axis=3
    ).reshape(a, b, -1)
    return [body, _by_row(blocks[..., 192:208], 1), _by_row(blocks[..., 208:], 2)]


def _unpack_q6_k(blocks: Bytes, lanes: Lanes) -> list[Bytes]:
    a, b, _ = blocks.shape
    body = blocks[..., :3072].reshape(a, b, 16, 192)
    low = _from_nibbles(body[..., :128].reshape(a, b, -1), lanes).reshape(a, b, 2, 128)
    high = (_from_planes(body[..., 128:].reshape(a, b, -1), lanes, 2) >> 4).reshape(a, b, 2, 4, 32)
    pairs = np.bitwise_or.reduce(high << np.array([[0], [2], [4], [6]], np.uint8), axis=3).reshape(a, b, 64)
    nibbles = (low[..., :64] | (low[..., 64:] << 4)).reshape(a, b, 128)
    return [nibbles, pairs, _from_row(blocks[..., 3072:3328], lanes, 1), _from_row(blocks[..., 3328:], lanes, 2)]


def _quarters(pairs: Bytes) -> Bytes:
    """ggml's order of two-bit codes: of 128, the first 32 are the low bits of 32 bytes, the next those above."""
    shape = pairs.shape[:-1]
    codes: Bytes = pairs.reshape(*shape, -1, 1, 32) >> np.array([[0], [2], [4], [6]], np.uint8) & np.uint8(3)
    return codes.reshape(*shape, 256)


def _to_quarters(codes: Bytes) -> Bytes:
    fields = codes.reshape(*codes.shape[:-1], 2, 4, 32) << np.array([[0], [2], [4], [6]], np.uint8)
    pairs: Bytes = np.bitwise_or.reduce(fields, axis=-2)
    return pairs.reshape(*codes.shape[:-1], 64)


def _pack_q2_k(blocks: Bytes) -> list[Bytes]:
    codes = _quarters(blocks[..., 16:80])
    return [_planes(codes, 2, 0), _by_row(blocks[..., :16], 1), _by_row(blocks[..., 80:], 2)]


def _unpack_q2_k(blocks: Bytes, lanes: Lanes) -> list[Bytes]:
    codes = _from_planes(blocks[..., :1024], lanes, 2, 0)
    return [_from_row(blocks[..., 1024:1280], lanes, 1), _to_quarters(codes), _from_row(blocks[..., 1280:], lanes, 2)]


def _pack_q3_k(blocks: Bytes) -> list[Bytes]:
    """A group's pairs, then its plane; group scales in three words, as they come."""
    bits = (blocks[..., None, :32] >> np.arange(8, dtype=np.uint8)[:, None]) & np.uint8(1)
    codes = _quarters(blocks[..., 32:96]) | bits.reshape(*blocks.shape[:3], 256) << np.uint8(2)
    return [_code_vectors(codes, 3), _by_row(blocks[..., 96:108], 4), _by_row(blocks[..., 108:], 2)]


def _unpack_q3_k(blocks: Bytes, lanes: Lanes) -> list[Bytes]:
    codes = _from_code_vectors(blocks[..., :1536], lanes, 3)
    third = (codes >> np.uint8(2)).reshape(*codes.shape[:2], 8, 32)
    high = np.bitwise_or.reduce(third << np.arange(8, dtype=np.uint8)[:, None], axis=2)
    tail = [_from_row(blocks[..., 1536:1728], lanes, 4), _from_row(blocks[..., 1728:], lanes, 2)]
    return [high, _to_quarters(codes & np.uint8(3)), *tail]


def _pack_iq4_xs(blocks: Bytes) -> list[Bytes]:
    shape = blocks.shape[:3]
    codes = _halves(blocks[..., 8:].reshape(*shape, 8, 16)).reshape(*shape, 256)
    tail = [_by_row(blocks[..., 4:8], 4), _by_row(blocks[..., 2:4], 1), _by_row(blocks[..., :2], 2)]
    return [_nibbles(codes), *tail]


def _unpack_iq4_xs(blocks: Bytes, lanes: Lanes) -> list[Bytes]:
    codes = _from_nibbles(blocks[..., :2048], lanes)
    nibbles = _to_halves(codes.reshape(*codes.shape[:2], 8, 32)).reshape(*codes.shape[:2], 128)
    ends = [(2144, 2176, 2), (2112, 2144, 1), (2048, 2112, 4)]
    return [*(_from_row(blocks[..., first:last], lanes, size) for first, last, size in ends), nibbles]


def _grouped(fmt: GroupedFormat) -> Codec:
    """Integers in groups: codes, and where there are planes each 32 columns' after its pairs; zero points; scales."""
    scale_bytes, codes_end = fmt.scales.block_bytes, TILE_ROWS * fmt.code_bytes
    zeros_end = codes_end + TILE_ROWS * fmt.has_zero

    def pack(blocks: Bytes) -> list[Bytes]:
        codes = unpacked_codes(blocks[..., : fmt.code_bytes], fmt.bits)
        tail = [_by_row(blocks[..., -scale_bytes:], scale_bytes)]
        if fmt.has_zero:
            tail.insert(0, blocks[..., fmt.code_bytes])
        return [_code_vectors(codes, fmt.bits), *tail]

    def unpack(blocks: Bytes, lanes: Lanes) -> list[Bytes]:
        codes = _from_code_vectors(blocks[..., :codes_end], lanes, fmt.bits)
        packed = packed_codes(codes.reshape(*blocks.shape[:2], fmt.block_values), fmt.bits)
        zeros = [_from_row(blocks[..., codes_end:zeros_end], lanes, 1)] if fmt.has_zero else []
        return [packed, *zeros, _from_row(blocks[..., zeros_end:], lanes, scale_bytes)]

    return pack, unpack


def _code_vectors(codes_ABRC: Bytes, bits: int) -> Bytes:
    if bits == 8:
        return _by_row(codes_ABRC, 4)
    if bits == 4:
        return _nibbles(codes_ABRC)
    pairs = _planes(codes_ABRC, 2, 0)
    if bits == 2:
        return pairs
    a, b = pairs.shape[:2]
    both = [pairs.reshape(a, b, -1, 128), _planes(codes_ABRC, 1, 2).reshape(a, b, -1, 64)]
    return np.concatenate(both, axis=3).reshape(a, b, -1)


def _from_code_vectors(packed_ABX: Bytes, lanes: Lanes, bits: int) -> Bytes:
    if bits == 8:
        return _from_row(packed_ABX, lanes, 4)
    if bits == 4:
        return _from_nibbles(packed_ABX, lanes)
    if bits == 2:
        return _from_planes(packed_ABX, lanes, 2, 0)
    a, b = packed_ABX.shape[:2]
    both = packed_ABX.reshape(a, b, -1, 192)
    pairs = _from_planes(both[..., :128].reshape(a, b, -1), lanes, 2, 0)
    return pairs | _from_planes(both[..., 128:].reshape(a, b, -1), lanes, 1, 2)


def _codec(fmt: Format) -> Codec:
    return _grouped(fmt) if isinstance(fmt, GroupedFormat) else _CODECS[fmt.name]


_CODECS: dict[str, Codec] = {
    "Q4_0": _small(2, False),
    "Q4_1": _small(4, False),
    "Q5_0": _small(2, True),
    "Q5_1": _small(4, True),
    "Q8_0": (_pack_q8_0, _unpack_q8_0),
    "Q2_K": (_pack_q2_k, _unpack_q2_k),
    "Q3_K": (_pack_q3_k, _unpack_q3_k),
    "Q4_K": _k(False),
    "Q5_K": _k(True),
    "Q6_K": (_pack_q6_k, _unpack_q6_k),
    "IQ4_NL": _small(2, False),
    "IQ4_XS": (_pack_iq4_xs, _unpack_iq4_xs),
    "MXFP4": _small(1, False),
}
