"""Link native objects into executable memory: the smallest linker that x86-64 ELF objects of kernels need.

At run time neither Numba nor LLVM is loaded (they would take 90 MB); a kernel's object, compiled once, is placed
here. Relocations are those of the System V ABI, AMD64 supplement, section 4.4; kernels are position-independent
and call nothing but a few C library functions, through stubs.
"""

import ctypes
import mmap
import struct
from dataclasses import dataclass

from residency.errors import StoreError

_SHT_NOBITS, _SHT_RELA, _SHT_SYMTAB, _SHF_ALLOC = 8, 4, 2, 2
_R_64, _R_PC32, _R_PLT32, _R_GOTPCREL, _R_PC64, _R_GOTPCRELX, _R_REX_GOTPCRELX = 1, 2, 4, 9, 24, 41, 42
_GOT_KINDS = (_R_GOTPCREL, _R_GOTPCRELX, _R_REX_GOTPCRELX)
_STUB = b"\xff\x25\x02\x00\x00\x00\x90\x90"  # jmp *[rip + 2]; two nops; the address follows, aligned to 8
_STUB_BYTES = 16


@dataclass(frozen=True)
class _Section:
    kind: int
    flags: int
    file_offset: int
    num_bytes: int
    info: int
    alignment: int
    link: int


@dataclass(frozen=True)
class _Symbol:
    name: str
    section: int
    value: int


class _Object:
    """One relocatable object: its sections and symbols."""

    def __init__(self, content: bytes) -> None:
        if content[:6] != b"\x7fELF\x02\x01" or struct.unpack_from("<H", content, 18) != (62,):
            raise StoreError("a compiled kernel in the cache is not an x86-64 object; delete the cache folder.")
        self.content = content
        (table,) = struct.unpack_from("<Q", content, 40)
        entry_bytes, count = struct.unpack_from("<HH", content, 58)
        self.sections = []
        for i in range(count):
            _, kind, flags, _, offset, size, link, info, align, _ = struct.unpack_from(
                "<IIQQQQIIQQ", content, table + i * entry_bytes
            )
            self.sections.append(_Section(kind, flags, offset, size, info, max(1, align), link))
        self.symbols = self._read_symbols()

    def _read_symbols(self) -> list[_Symbol]:
        table = next(s for s in self.sections if s.kind == _SHT_SYMTAB)
        strings = self.sections[table.link].file_offset
        symbols = []
        for at in range(table.file_offset, table.file_offset + table.num_bytes, 24):
            name, _, _, section, value, _ = struct.unpack_from("<IBBHQQ", self.content, at)
            end = self.content.index(b"\0", strings + name)
            symbols.append(_Symbol(self.content[strings + name : end].decode(), section, value))
        return symbols


class Image:
    """Executable memory that holds a set of linked objects. Close it when nothing runs in it any more."""

    def __init__(self, objects: list[bytes], entries: list[str]) -> None:
        """Link `objects`; `addresses[i]` is where the symbol `entries[i]` of object i ends up."""
        try:
            parsed = [_Object(content) for content in objects]
        except (struct.error, ValueError, IndexError, StopIteration) as error:
            raise StoreError(f"a compiled kernel in the cache is damaged ({error}); delete the cache folder.") from None
        placements, image_bytes = _place(parsed)
        self._external: dict[str, int] = {}
        self._next_slot = image_bytes
        slots = sum(1 for o in parsed for s in o.sections if s.kind == _SHT_RELA for _ in range(s.num_bytes // 24))
        self._memory = mmap.mmap(-1, image_bytes + slots * _STUB_BYTES + _STUB_BYTES)
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        for obj, placed in zip(parsed, placements, strict=True):
            self._copy(obj, placed)
        for obj, placed in zip(parsed, placements, strict=True):
            self._relocate(obj, placed)
        _make_executable(self._base, len(self._memory))
        self.addresses = [
            self._base + placed[symbol.section] + symbol.value
            for obj, placed, entry in zip(parsed, placements, entries, strict=True)
            for symbol in obj.symbols
            if symbol.name == entry
        ]
        if len(self.addresses) != len(entries):
            raise StoreError("a compiled kernel in the cache lacks its entry; delete the cache folder.")

    def _copy(self, obj: _Object, placed: dict[int, int]) -> None:
        for index, offset in placed.items():
            section = obj.sections[index]
            if section.kind != _SHT_NOBITS:
                data = obj.content[section.file_offset : section.file_offset + section.num_bytes]
                self._memory[offset : offset + len(data)] = data

    def _relocate(self, obj: _Object, placed: dict[int, int]) -> None:
        for section in obj.sections:
            if section.kind != _SHT_RELA or section.info not in placed:
                continue
            for at in range(section.file_offset, section.file_offset + section.num_bytes, 24):
                offset, info, addend = struct.unpack_from("<QQq", obj.content, at)
                symbol = obj.symbols[info >> 32]
                if symbol.section in placed:
                    target = self._base + placed[symbol.section] + symbol.value
                else:
                    target = self._stub(symbol.name)
                self._patch(info & 0xFFFFFFFF, placed[section.info] + offset, target, addend)

    def _patch(self, kind: int, offset: int, target: int, addend: int) -> None:
        place = self._base + offset
        if kind in _GOT_KINDS:
            target = self._slot(struct.pack("<Q", target))
        if kind == _R_64:
            struct.pack_into("<Q", self._memory, offset, target + addend)
        elif kind == _R_PC64:
            struct.pack_into("<q", self._memory, offset, target + addend - place)
        elif kind in (_R_PC32, _R_PLT32, *_GOT_KINDS):
            struct.pack_into("<i", self._memory, offset, target + addend - place)
        else:
            raise StoreError(f"a compiled kernel has a relocation of kind {kind}; delete the cache folder.")

    def _slot(self, content: bytes) -> int:
        at = self._next_slot
        self._memory[at : at + len(content)] = content
        self._next_slot += _STUB_BYTES
        return self._base + at

    def _stub(self, name: str) -> int:
        if name not in self._external:
            function = getattr(ctypes.CDLL(None), name, None)
            if function is None:
                raise StoreError(f"a compiled kernel calls {name}, which this system lacks; delete the cache folder.")
            address = ctypes.cast(function, ctypes.c_void_p).value or 0
            self._external[name] = self._slot(_STUB + struct.pack("<Q", address))
        return self._external[name]


class SignalEntry:
    """What sigaction may be given: code that calls a linked driver with the signal's description and a word."""

    def __init__(self, driver: int, word: int) -> None:
        """`driver` takes Numba's two places first, and must never be unlinked."""
        self._unused = (ctypes.c_int64 * 8)()
        places = struct.pack("<Q", ctypes.addressof(self._unused))
        code = (
            b"\x48\x89\xf2"  # mov rdx, rsi: the description, which comes second
            + (b"\x48\xb9" + struct.pack("<Q", word))  # mov rcx, word
            + (b"\x48\xbf" + places)  # mov rdi, places
            + b"\x48\x89\xfe"  # mov rsi, rdi
            + (b"\x48\xb8" + struct.pack("<Q", driver))  # mov rax, driver
            + b"\xff\xe0"  # jmp rax
        )
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)
        self._memory[: len(code)] = code
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        _make_executable(self.address, mmap.PAGESIZE)


def _make_executable(address: int, num_bytes: int) -> None:
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    if protect(address, num_bytes, mmap.PROT_READ | mmap.PROT_EXEC):
        raise StoreError("this system forbids executable memory (mprotect failed), which compiled kernels need.")


def _place(objects: list[_Object]) -> tuple[list[dict[int, int]], int]:
    """Offsets of every section that is needed at run time, and the bytes of all."""
    placements, end = [], 0
    for obj in objects:
        placed = {}
        for index, section in enumerate(obj.sections):
            if section.flags & _SHF_ALLOC and section.num_bytes:
                end = -(-end // section.alignment) * section.alignment
                placed[index] = end
                end += section.num_bytes
        placements.append(placed)
    return placements, -(-end // 64) * 64
