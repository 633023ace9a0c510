"""A file of requests in OpenAI's batch format, answered into another: one JSON object a line.

Results are appended as they come and counted once they are on the disk. So a batch that was killed goes on where it
was: what has a result is skipped, and a last line that was torn is dropped.
"""

import asyncio
import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from residency.errors import FileError
from residency.server.desk import ENDPOINTS, Desk
from residency.server.problems import Problem, Refused, problem_of

MAX_LINE_BYTES = 8 << 20
_BLOCK_BYTES = 1 << 16
_ID_PREFIX = "batch_req_"
_BEGIN = b'{"id": "batch_req_'  # of a result


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of a batch."""

    custom_id: str
    data: dict[str, Any]  # all of the line


@dataclass(kw_only=True)
class Tally:
    """How far a batch is."""

    total: int
    done: int  # those of earlier runs included
    failed: int = 0
    completion_tokens: int = 0


class Results:
    """The file of results. Use it in a `with` statement."""

    def __init__(self, path: Path) -> None:
        """FileError if the file is there and holds something else; it is as it was then."""
        self._lock = asyncio.Lock()
        self.custom_ids: frozenset[str] = frozenset()
        whole_bytes = 0
        if path.exists():
            self.custom_ids = frozenset(_result_ids(path))
            whole_bytes = _whole_lines_bytes(path)
        self._file = path.open("ab", buffering=0)
        self._file.truncate(whole_bytes)

    def __enter__(self) -> "Results":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    async def add(self, result: dict[str, Any]) -> None:
        """Append a line; it is on the disk when this returns."""
        async with self._lock:
            await asyncio.to_thread(self._write, json.dumps(result, ensure_ascii=False).encode("utf-8", "replace"))

    def _write(self, line: bytes) -> None:
        data = memoryview(line + b"\n")
        while data:
            data = data[self._file.write(data) :]
        os.fsync(self._file.fileno())


def read_batch(path: Path) -> Iterator[Entry]:
    """The batch's lines. FileError at the first that is no request, or whose custom_id has come before."""
    known: set[str] = set()
    for number, data in _objects(path):
        custom_id = data.get("custom_id")
        if not isinstance(custom_id, str):
            raise FileError(f"{path}, line {number} has no custom_id; give each request one of its own.")
        if custom_id in known:
            raise FileError(f"{path}, line {number}: the custom_id '{custom_id[:80]}' has come before; give another.")
        known.add(custom_id)
        yield Entry(custom_id=custom_id, data=data)


@dataclass(kw_only=True)
class Batch:
    """Answers entries, several at a time."""

    desk: Desk
    results: Results
    tally: Tally
    at_a_time: int
    progress: Callable[[Tally], None]
    _entries: Iterator[Entry] = field(init=False)

    async def run(self, entries: Iterable[Entry]) -> Tally:
        """Answer all that have no result yet. ServiceError if the service fails: what it broke has no result then."""
        self._entries = (entry for entry in entries if entry.custom_id not in self.results.custom_ids)
        await asyncio.gather(*(self._work() for _ in range(self.at_a_time)))
        return self.tally

    async def _work(self) -> None:
        for entry in self._entries:
            result = await self._answer(entry)
            await self.results.add(result)
            self.tally.done += 1
            self.progress(self.tally)

    async def _answer(self, entry: Entry) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        try:
            body: object = await self._body(entry, fields)
            status = 200
        except Exception as error:
            self.desk.generator.require_service()
            problem = problem_of(error)
            body, status = problem.body, problem.status
            self.tally.failed += 1
        self.tally.completion_tokens += fields.get("completion_tokens", 0)
        return {
            "id": f"{_ID_PREFIX}{uuid.uuid4().hex}",
            "custom_id": entry.custom_id,
            "response": {"status_code": status, "request_id": f"req_{uuid.uuid4().hex}", "body": body},
            "error": None,
        }

    async def _body(self, entry: Entry, fields: dict[str, Any]) -> object:
        data = entry.data
        if data.get("method", "POST") != "POST" or data.get("url") not in ENDPOINTS:
            message = f"'method' and 'url' must be POST and one of {', '.join(ENDPOINTS)}."
            raise Refused(Problem(status=400, message=message, param="url"))
        job = await self.desk.job(data["url"], json.dumps(data.get("body")), fields)
        return await job.whole(self.desk.generator)


def _result_ids(path: Path) -> Iterator[str]:
    for number, data in _objects(path, may_be_torn=True):
        if not str(data.get("id")).startswith(_ID_PREFIX) or not isinstance(data.get("custom_id"), str):
            raise FileError(f"{path}, line {number} is no result of a batch; give another file for results.")
        yield data["custom_id"]


def _whole_lines_bytes(path: Path) -> int:
    """Where the last line that is whole ends."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            begin = max(0, end - _BLOCK_BYTES)
            file.seek(begin)
            newline = file.read(end - begin).rfind(b"\n")
            if newline >= 0:
                return begin + newline + 1
            end = begin
    return 0


def _objects(path: Path, *, may_be_torn: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each line that is not empty, with its number. FileError for one that is no JSON object.

    may_be_torn: a last line without its end is left out, if it begins as results do.
    """
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise FileError(f"{path}, line {number} has more than {MAX_LINE_BYTES} bytes; send a shorter prompt.")
            is_torn = may_be_torn and not line.endswith(b"\n") and (line.startswith(_BEGIN) or _BEGIN.startswith(line))
            if not line.strip() or is_torn:
                continue
            try:
                data = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise FileError(f"{path}, line {number} is not JSON ({error}); correct it.") from error
            if not isinstance(data, dict):
                raise FileError(f"{path}, line {number} is no JSON object; correct it.")
            yield number, data
