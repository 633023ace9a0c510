"""Pages of prompts kept in a file, for later prompts that begin alike and for later runs of the same plan.

The file is one of slots, the same place of every group in each. A slot's page has a record before it: its group, the
digest of all tokens up to its end (`ledger.kept`), and a checksum over digest and page. A page that is torn, or that
something else has written to, does not agree with its checksum and counts as not kept.
"""

import fcntl
import hashlib
import json
import logging
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from residency import __version__
from residency.errors import StoreError, UsageError
from residency.ledger import KeptPage, KeptPages
from residency.ledger.kept import DIGEST_BYTES
from residency.planner.plan import Plan
from residency.records import to_data
from residency.scheduler import SwapCost

MOST_SLOTS = 1 << 14  # of all groups, whose digests are remembered
SLOT_RECORD_BYTES = 320  # of each
_BEGIN = b"residency KV pages 1\n"
_BLOCK_BYTES = 4096  # of the file's head; slots begin at whole ones
_RECORD = struct.Struct(f"<4sIQ{DIGEST_BYTES}s{DIGEST_BYTES}s")
_RECORD_MAGIC = b"KVpg"
_EMPTY = bytes(_RECORD.size)
_FAILURES_TO_STOP = 4  # one after another: the disk is full, or broken

Page = npt.NDArray[np.uint8]
logger = logging.getLogger("residency.engine")


@dataclass(frozen=True, kw_only=True)
class KvStoreSpace:
    """Where pages are kept, how many bytes of them, and how quick that is."""

    folder: Path
    num_bytes: int
    bytes_per_second: float

    def pays(self, plan: Plan) -> bool:
        """Whether a page is quicker read than computed, by the plan's forecast."""
        cost = SwapCost(
            prefill_tokens_per_second=plan.forecast.prefill_tokens_per_second,
            copy_bytes_per_second=2 * self.bytes_per_second,  # one way: what is written waits for nobody
            page_bytes=_page_bytes(plan),
        )
        return cost.pays(computed_tokens=plan.page_tokens, held_pages=[1] * len(plan.kv_groups))


class KvStore:
    """The file of one plan's pages. Only one process has it at a time. Use it in a `with` statement."""

    def __init__(self, plan: Plan, space: KvStoreSpace) -> None:
        """UsageError where another process has the file or too few bytes are given, StoreError where it cannot be made.
        A file of that name that holds something else is set aside, with a warning.
        """
        self._page_bytes = _page_bytes(plan)
        self._offsets = [_BLOCK_BYTES]
        for num_bytes in self._page_bytes:
            self._offsets.append(self._offsets[-1] + _whole_blocks(_RECORD.size + num_bytes))
        self._slot_bytes = self._offsets.pop() - _BLOCK_BYTES
        self.num_slots = min(MOST_SLOTS // len(self._page_bytes), (space.num_bytes - _BLOCK_BYTES) // self._slot_bytes)
        if self.num_slots < 1:
            raise UsageError(f"a KV store has at least {_BLOCK_BYTES + self._slot_bytes} bytes; give it more.")
        head = _BEGIN + _identity(plan).encode() + b"\n"
        self.path = space.folder / f"{_identity(plan)[:32]}.kvpages"
        self._failures = 0
        self._opened = ExitStack()
        try:
            space.folder.mkdir(parents=True, exist_ok=True)
            self._file = self._open()
            if not head.startswith(os.pread(self._file, len(head), 0)):
                aside = self.path.with_suffix(".foreign")
                logger.warning("%s is no KV store; it is %s now, and ignored", self.path, aside.name)
                self.path.rename(aside)
                self._opened.close()
                self._file = self._open()
            _write_all(self._file, [head], 0)
            if os.fstat(self._file).st_size > (most := _BLOCK_BYTES + self.num_slots * self._slot_bytes):
                os.ftruncate(self._file, most)
            self.kept = KeptPages([self.num_slots] * len(self._page_bytes), self._found())
        except OSError as error:
            self._opened.close()
            raise StoreError(f"{self.path} cannot be used: {error.strerror}; give another folder.") from error

    def __enter__(self) -> "KvStore":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let others have the file."""
        self._opened.close()

    def write(self, page_LB: Page, *, group: int, slot: int, digest: bytes) -> None:
        """Keep a page (layers, bytes) in a slot. OSError where the disk fails, and at once where it did repeatedly."""
        if self._failures >= _FAILURES_TO_STOP:
            raise OSError("the KV store takes no more pages")
        data = page_LB.tobytes()
        record = _RECORD.pack(_RECORD_MAGIC, group, len(data), digest, _checksum(digest, data))
        try:
            _write_all(self._file, [record, data], self._place(group, slot))
        except OSError as error:
            self._failures += 1
            if self._failures == _FAILURES_TO_STOP:
                logger.warning("%s takes no more pages: %s", self.path, error.strerror)
            raise
        self._failures = 0

    def read(self, page_LB: Page, *, group: int, slot: int, digest: bytes) -> None:
        """Put the page of that digest into a page (layers, bytes). StoreError where the slot does not hold it whole,
        OSError where the disk fails.
        """
        size = _RECORD.size + self._page_bytes[group]
        found = os.pread(self._file, size, self._place(group, slot))
        if len(found) == size:
            magic, its_group, length, its_digest, checksum = _RECORD.unpack_from(found)
            data = memoryview(found)[_RECORD.size :]
            is_ours = (magic, its_group, length, its_digest) == (_RECORD_MAGIC, group, len(data), digest)
            if is_ours and checksum == _checksum(digest, data):
                page_LB[:] = np.frombuffer(data, np.uint8).reshape(page_LB.shape)
                return
        logger.warning("%s: a page is torn or foreign and is computed anew", self.path)
        raise StoreError(f"{self.path} does not hold the page any more; it is computed anew.")

    def _open(self) -> int:
        """The file, which is nobody else's until it is closed."""
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._opened.callback(os.close, file)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._opened.close()
            raise UsageError(f"{self.path} is in use by another process; give another folder.") from error
        return file

    def _found(self) -> Iterator[KeptPage]:
        """The pages that the file says it has."""
        num_odd = 0
        in_file = -(-(os.fstat(self._file).st_size - _BLOCK_BYTES) // self._slot_bytes)
        for slot in range(min(self.num_slots, in_file)):
            for group, num_bytes in enumerate(self._page_bytes):
                record = os.pread(self._file, _RECORD.size, self._place(group, slot))
                if record in (b"", _EMPTY):
                    continue
                fields = _RECORD.unpack(record.ljust(_RECORD.size, b"\0"))
                if fields[:3] == (_RECORD_MAGIC, group, num_bytes):
                    yield KeptPage(group=group, digest=fields[3], slot=slot)
                else:
                    num_odd += 1
        if num_odd:
            logger.warning("%s: %d pages are torn or foreign and are ignored", self.path, num_odd)

    def _place(self, group: int, slot: int) -> int:
        return self._offsets[group] + slot * self._slot_bytes


def _identity(plan: Plan) -> str:
    """A digest of all that a page's bytes depend on, beside its tokens."""
    groups = [(group.layers, group.window_tokens, group.page_bytes) for group in plan.kv_groups]
    device = plan.device and (plan.device.name, plan.device.activation_type, plan.device.random_weights)
    parts = [
        __version__,
        plan.model_fingerprint,
        to_data(plan.kv_format),
        plan.page_tokens,
        plan.prompts_in_tiles,
        device,
        groups,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _page_bytes(plan: Plan) -> Sequence[int]:
    return [group.page_bytes * len(group.layers) for group in plan.kv_groups]


def _whole_blocks(num_bytes: int) -> int:
    return -(-num_bytes // _BLOCK_BYTES) * _BLOCK_BYTES


def _checksum(digest: bytes, data: bytes | memoryview) -> bytes:
    state = hashlib.blake2b(digest, digest_size=DIGEST_BYTES)
    state.update(data)
    return state.digest()


def _write_all(file: int, parts: Sequence[bytes], place: int) -> None:
    left = [memoryview(part) for part in parts]
    while left:
        written = os.pwritev(file, left, place)
        place += written
        while left and written >= len(left[0]):
            written -= len(left.pop(0))
        if left:
            left[0] = left[0][written:]
