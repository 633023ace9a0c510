"""A vocabulary as tables in one file, mapped into memory: nothing is parsed, and only touched pages are resident.

The file: MAGIC, the header's bytes (uint64), a JSON header, then the arrays it describes, each aligned to 8 bytes.
Two open-addressing hash tables find a piece by its bytes and a merge by its two tokens.
"""

import json
import mmap
import os
import sys
from array import array
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from zlib import crc32

from residency.engine.text.merging import Joined

MAGIC = b"RSDTOK02"
ALIGNMENT_BYTES = 8
HASH_FACTOR = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: Knuth, The Art of Computer Programming 3, 6.4
HASH_MASK = (1 << 64) - 1
NO_PAIR = HASH_MASK  # no two tokens have this key, as both ids are below 2^31


class DamagedTables(Exception):
    """The file is not a vocabulary's tables, or not of this version. They can be built again."""


def build_tables(
    *,
    pieces: Sequence[bytes],
    findable: Sequence[bool],
    scores: Sequence[float],
    merges: Sequence[tuple[int, int, int]],
    settings: Mapping[str, Any],
) -> bytes:
    """The file's contents.

    pieces: what each token stands for. findable: whether text may become this token by its bytes. scores: empty, or
    one a token. merges: (left, right, joined) by falling priority. settings: kept as they are, as JSON.
    """
    offsets = array("I", [0])
    for piece in pieces:
        offsets.append(offsets[-1] + len(piece))
    arrays: dict[str, array[Any]] = {
        "text": array("B", b"".join(pieces)),
        "offsets": offsets,
        "slots": _piece_slots(pieces, findable),
        "scores": array("f", scores),
        "pairs": _pair_slots(merges),
    }
    described, position = {}, 0
    for name, values in arrays.items():
        described[name] = [values.typecode, position, len(values)]
        position += _aligned(len(values) * values.itemsize)
    header = json.dumps({"byteorder": sys.byteorder, "arrays": described, "settings": dict(settings)}).encode()
    header += b" " * (_aligned(len(header)) - len(header))
    body = b"".join(
        values.tobytes().ljust(_aligned(len(values) * values.itemsize), b"\0") for values in arrays.values()
    )
    return MAGIC + len(header).to_bytes(8, "little") + header + body


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def _num_slots(num_entries: int) -> int:
    return 1 << (num_entries * 3 // 2 + 1).bit_length()


def _piece_slots(pieces: Sequence[bytes], findable: Sequence[bool]) -> "array[int]":
    """Token ids plus one, 0 for a free slot; of equal pieces the last is found."""
    num_slots = _num_slots(len(pieces))
    slots, mask = array("I", bytes(4 * num_slots)), num_slots - 1
    for token_id, piece in enumerate(pieces):
        if findable[token_id]:
            i = crc32(piece) & mask
            while (taken := slots[i]) and pieces[taken - 1] != piece:
                i = (i + 1) & mask
            slots[i] = token_id + 1
    return slots


def _pair_slots(merges: Sequence[tuple[int, int, int]]) -> "array[int]":
    """Two words a slot: left << 32 | right, then rank << 32 | joined. Of equal pairs the first is found."""
    num_slots = _num_slots(len(merges))
    slots, mask = array("Q", b"\xff" * (16 * num_slots)), num_slots - 1
    for rank, (left, right, joined) in enumerate(merges):
        key = left << 32 | right
        i = (key * HASH_FACTOR & HASH_MASK) >> 32 & mask
        while slots[2 * i] not in (NO_PAIR, key):
            i = (i + 1) & mask
        if slots[2 * i] == NO_PAIR:
            slots[2 * i], slots[2 * i + 1] = key, rank << 32 | joined
    return slots


class Tables:
    """A vocabulary's tables, over the bytes that `build_tables` made. DamagedTables if they are something else."""

    def __init__(self, data: "bytes | mmap.mmap") -> None:
        view = memoryview(data)
        try:
            if bytes(view[:8]) != MAGIC:
                raise DamagedTables("foreign")
            start = 16 + int.from_bytes(view[8:16], "little")
            header = json.loads(bytes(view[16:start]))
            if header["byteorder"] != sys.byteorder:
                raise DamagedTables("from another machine")
            self.settings: dict[str, Any] = header["settings"]
            arrays: dict[str, Any] = {}
            for name, (typecode, position, count) in header["arrays"].items():
                end = start + position + count * array(typecode).itemsize
                if end > len(view):
                    raise DamagedTables("truncated")
                arrays[name] = view[start + position : end].cast(typecode)
            self._text, self._offsets, self._slots = arrays["text"], arrays["offsets"], arrays["slots"]
            self._scores, self._pairs = arrays["scores"], arrays["pairs"]
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise DamagedTables(str(error)) from error
        self.num_tokens = len(self._offsets) - 1
        self._slot_mask = len(self._slots) - 1
        self._pair_mask = len(self._pairs) // 2 - 1

    def piece(self, token_id: int) -> bytes:
        """What the token stands for; IndexError outside the vocabulary."""
        return bytes(self._text[self._offsets[token_id] : self._offsets[token_id + 1]])

    def find(self, piece: bytes) -> int | None:
        """The token of exactly these bytes."""
        i = crc32(piece) & self._slot_mask
        while taken := self._slots[i]:
            if self._text[self._offsets[taken - 1] : self._offsets[taken]] == piece:
                return int(taken) - 1
            i = (i + 1) & self._slot_mask
        return None

    def join_tokens(self, left: int, right: int) -> Joined[int] | None:
        """The merge of two tokens, the earliest learned first."""
        key = left << 32 | right
        i = (key * HASH_FACTOR & HASH_MASK) >> 32 & self._pair_mask
        while (found := self._pairs[2 * i]) != key:
            if found == NO_PAIR:
                return None
            i = (i + 1) & self._pair_mask
        value = self._pairs[2 * i + 1]
        return Joined(value >> 32, value & 0xFFFFFFFF)

    def join_pieces(self, left: bytes, right: bytes) -> Joined[bytes] | None:
        """Two pieces as one that is a token, the one of the highest score first."""
        joined = left + right
        token_id = self.find(joined)
        return None if token_id is None else Joined(-self._scores[token_id], joined)


def map_tables(path: Path) -> Tables:
    """The tables in the file `path`, mapped. OSError or DamagedTables."""
    with open(path, "rb") as file:
        try:
            return Tables(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except ValueError as error:  # an empty file
            raise DamagedTables("empty") from error


def keep_tables(path: Path, data: bytes) -> Tables:
    """The tables in `data`, written to `path` atomically; where that fails they stay in memory."""
    scratch = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_bytes(data)
        os.replace(scratch, path)
        return map_tables(path)
    except OSError:
        with suppress(OSError):
            scratch.unlink()
        return Tables(data)
