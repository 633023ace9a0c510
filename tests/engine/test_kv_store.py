"""Prompts' pages that are kept on disk: they come back as they were, or are computed anew."""

import errno
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from residency.engine.engine import Engine
from residency.engine.generation import GenerationOptions
from residency.engine.kv_store import KvStore, KvStoreSpace
from residency.engine.loop import Loop
from residency.engine.service import Service
from residency.engine.swap import SwapFile, SwapSpace
from residency.errors import StoreError, UsageError
from residency.planner import Plan
from residency.planner.memory import PAGE_RECORD_BYTES
from support.engines import plan_of
from support.loops import answers, events_until_idle, loop_on

DIGEST = bytes(range(16))
PROMPT = [40 + i % 50 for i in range(100)]  # six whole pages
OTHERS = [[start] * 200 for start in (1, 2, 3)]  # more than memory has pages for


def space_of(folder: Path, num_bytes: int = 8 << 20) -> KvStoreSpace:
    return KvStoreSpace(folder=folder, num_bytes=num_bytes, bytes_per_second=1e9)


def page_of(plan: Plan, seed: int = 0) -> npt.NDArray[np.uint8]:
    (group,) = plan.kv_groups
    return np.random.default_rng(seed).integers(0, 256, (len(group.layers), group.page_bytes), np.uint8)


@pytest.fixture(scope="module")
def plan(path: Path) -> Plan:
    """Pages for one context of 256 tokens, and a few more."""
    whole = plan_of(path, context_tokens=256, chunk_tokens=32, max_sequences=2)
    page_bytes = sum(group.page_bytes * len(group.layers) + PAGE_RECORD_BYTES for group in whole.kv_groups)
    budget_bytes = whole.memory.peak - whole.memory.kv_cache + 18 * page_bytes
    return plan_of(
        path, context_tokens=256, chunk_tokens=32, max_sequences=2, oversubscribe=True, budget_bytes=budget_bytes
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "kv"


def kept_page(plan: Plan, folder: Path) -> Path:
    """The file of a store that keeps one page."""
    with KvStore(plan, space_of(folder)) as store:
        slot = store.kept.keep(0, DIGEST)
        assert slot is not None
        store.write(page_of(plan), group=0, slot=slot, digest=DIGEST)
        return store.path


def found_page(plan: Plan, folder: Path) -> npt.NDArray[np.uint8]:
    found = np.zeros_like(page_of(plan))
    with KvStore(plan, space_of(folder)) as store:
        store.read(found, group=0, slot=store.kept.use(0, DIGEST), digest=DIGEST)
    return found


def test_a_page_is_found_by_its_digest_after_a_restart(plan: Plan, folder: Path) -> None:
    kept_page(plan, folder)
    np.testing.assert_array_equal(found_page(plan, folder), page_of(plan))


@pytest.mark.parametrize("place", [4096 + 60, -1])
def test_a_torn_page_is_told_by_its_checksum(plan: Plan, folder: Path, place: int) -> None:
    path = kept_page(plan, folder)
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match="does not hold the page any more"):
        found_page(plan, folder)


def test_a_page_that_is_cut_off_is_told(plan: Plan, folder: Path) -> None:
    path = kept_page(plan, folder)
    os.truncate(path, path.stat().st_size - 100)
    with pytest.raises(StoreError, match="does not hold the page any more"):
        found_page(plan, folder)


def test_a_foreign_record_is_ignored_with_a_warning(plan: Plan, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = kept_page(plan, folder)
    data = bytearray(path.read_bytes())
    data[4096:4100] = b"????"
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING), KvStore(plan, space_of(folder)) as store:
        assert store.kept.num_kept == 0
    assert "1 pages are torn or foreign and are ignored" in caplog.text


def test_a_file_of_something_else_is_set_aside_with_a_warning(
    plan: Plan, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = kept_page(plan, folder)
    path.write_text("somebody's diary")
    with KvStore(plan, space_of(folder)) as store:
        assert store.kept.num_kept == 0
    assert path.with_suffix(".foreign").read_text() == "somebody's diary"
    assert "is no KV store" in caplog.text


def test_a_file_whose_head_was_cut_off_begins_anew(plan: Plan, folder: Path) -> None:
    os.truncate(kept_page(plan, folder), 10)
    with KvStore(plan, space_of(folder)) as store:
        assert store.kept.num_kept == 0


def test_a_folder_that_cannot_be_made_is_refused(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot be used: .*; give another folder"):
        KvStore(plan, space_of(tmp_path / "file"))


@pytest.mark.parametrize("changes", [{"kv_format": "F32"}, {"model_fingerprint": "other"}, {"prompts_in_tiles": True}])
def test_another_plan_s_pages_are_in_another_file(plan: Plan, folder: Path, changes: dict[str, Any]) -> None:
    kept_page(plan, folder)
    with KvStore(replace(plan, **changes), space_of(folder)) as other:
        assert other.kept.num_kept == 0


def test_only_one_process_has_the_file(plan: Plan, folder: Path) -> None:
    with KvStore(plan, space_of(folder)), pytest.raises(UsageError, match="is in use by another process"):
        KvStore(plan, space_of(folder))


def test_the_file_is_not_for_others_to_read(plan: Plan, folder: Path) -> None:
    assert kept_page(plan, folder).stat().st_mode & 0o077 == 0


def test_a_store_of_fewer_bytes_keeps_what_it_has_room_for(plan: Plan, folder: Path) -> None:
    path = kept_page(plan, folder)
    with KvStore(plan, space_of(folder)) as store:
        for number in range(20):
            digest = bytes([number]) * 16
            slot = store.kept.keep(0, digest)
            assert slot is not None
            store.write(page_of(plan), group=0, slot=slot, digest=digest)
    few_bytes = 10 * page_of(plan).nbytes
    with KvStore(plan, space_of(folder, few_bytes)) as store:
        assert 0 < store.kept.num_kept <= 10
    assert path.stat().st_size <= few_bytes


def test_a_store_without_room_for_a_page_is_refused(plan: Plan, folder: Path) -> None:
    with pytest.raises(UsageError, match="a KV store has at least"):
        KvStore(plan, space_of(folder, 100))


def test_reading_pays_where_the_disk_is_quicker_than_the_processor(plan: Plan, folder: Path) -> None:
    assert KvStoreSpace(folder=folder, num_bytes=1 << 20, bytes_per_second=1e12).pays(plan)
    assert not KvStoreSpace(folder=folder, num_bytes=1 << 20, bytes_per_second=1.0).pays(plan)


@contextmanager
def loop_of(path: Path, plan: Plan, folder: Path, swap: SwapSpace | None = None) -> Iterator[Loop]:
    with loop_on(path, plan, store=space_of(folder), swap=swap) as loop:
        yield loop


def asked(loop: Loop, prompt: list[int], max_tokens: int = 8) -> tuple[list[int | None], int]:
    """The answer's tokens, and how many of the prompt's came from a cache."""
    request_id = loop.submit(prompt, GenerationOptions(max_tokens=max_tokens))
    events = events_until_idle(loop)
    return answers(events, request_id)[0], events[-1].cached_tokens


def test_a_prompt_whose_pages_gave_way_to_others_finds_them_on_disk(path: Path, plan: Plan, folder: Path) -> None:
    with loop_of(path, plan, folder) as loop:
        first, _ = asked(loop, PROMPT)
        for other in OTHERS:
            asked(loop, other)
        assert asked(loop, PROMPT) == (first, 96)
        assert loop.counts().loaded_pages == 6


def test_a_prompt_is_known_after_a_restart(path: Path, plan: Plan, folder: Path) -> None:
    with loop_of(path, plan, folder) as loop:
        first, cached = asked(loop, PROMPT)
    with loop_of(path, plan, folder) as loop:
        assert (cached, asked(loop, PROMPT)) == (0, (first, 96))


def test_a_prompt_is_known_after_a_kill(path: Path, plan: Plan, folder: Path, tmp_path: Path) -> None:
    with loop_of(path, plan, folder) as loop:
        first, _ = asked(loop, PROMPT)
        while loop.has_unsaved_pages:
            loop.save_page()
        shutil.copytree(folder, tmp_path / "as it was when it was killed")
    with loop_of(path, plan, tmp_path / "as it was when it was killed") as loop:
        assert asked(loop, PROMPT) == (first, 96)


def test_a_step_writes_one_page_at_most(path: Path, plan: Plan, folder: Path) -> None:
    with loop_of(path, plan, folder) as loop:
        loop.submit(PROMPT, GenerationOptions(max_tokens=8))
        saved = [0]
        while loop.has_work:
            loop.step()
            saved.append(loop.counts().saved_pages)
        assert {after - before for before, after in pairwise(saved)} == {0, 1}


def test_a_service_without_requests_writes_what_is_left(path: Path, plan: Plan, folder: Path) -> None:
    ended = threading.Event()
    with Engine.open(plan) as engine, Service(engine, store=space_of(folder)) as service:
        service.submit(PROMPT, GenerationOptions(max_tokens=1), lambda _: ended.set())
        assert ended.wait(20)
        until = time.monotonic() + 20
        while service.metrics().loop.saved_pages < 6:
            assert time.monotonic() < until
            time.sleep(0.01)


def test_another_salt_finds_nothing_after_a_restart(path: Path, plan: Plan, folder: Path) -> None:
    with loop_of(path, plan, folder) as loop:
        asked(loop, PROMPT)
    with loop_of(path, plan, folder) as loop:
        request_id = loop.submit(PROMPT, GenerationOptions(max_tokens=1, cache_salt="mine"))
        assert [event.cached_tokens for event in events_until_idle(loop)] == [0]
        assert request_id == 0


def test_what_is_torn_is_computed_anew_with_the_same_answer(path: Path, plan: Plan, folder: Path) -> None:
    with loop_of(path, plan, folder) as loop:
        first, _ = asked(loop, PROMPT)
    (file,) = folder.iterdir()
    data = np.fromfile(file, np.uint8)
    data[8192:] ^= 1
    data.tofile(file)
    with loop_of(path, plan, folder) as loop:
        assert asked(loop, PROMPT) == (first, 0)


def test_a_disk_that_fails_to_read_costs_time_and_no_answer(
    path: Path, plan: Plan, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with loop_of(path, plan, folder) as loop:
        first, _ = asked(loop, PROMPT)
        other, _ = asked(loop, OTHERS[0])

    def failing(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(KvStore, "read", failing)
    with loop_of(path, plan, folder) as loop:
        requests = [loop.submit(prompt, GenerationOptions(max_tokens=8)) for prompt in (OTHERS[0], PROMPT)]
        events = events_until_idle(loop)
        assert [answers(events, request)[0] for request in requests] == [other, first]
        assert loop.counts().failed_copies > 0


def test_a_full_disk_keeps_nothing_more_and_answers_go_on(
    path: Path, plan: Plan, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with loop_of(path, plan, folder) as loop:
        monkeypatch.setattr(os, "pwritev", full)
        first, _ = asked(loop, PROMPT)
        for other in OTHERS:
            asked(loop, other)
        assert asked(loop, PROMPT)[0] == first
        assert loop.counts().kept_pages == 0
    assert "takes no more pages: No space left on device" in caplog.text


@pytest.mark.parametrize("fault", ["read", "write"])
def test_what_a_failing_swap_loses_is_computed_again(
    path: Path, tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    swap = SwapSpace(folder=tmp_path, num_bytes=64 << 20, bytes_per_second=1e12)
    prompts = [[start] * 120 for start in (5, 6)]

    def tokens() -> list[list[int | None]]:
        with loop_on(path, plan, swap=swap) as loop:
            requests = [
                loop.submit(prompt, GenerationOptions(max_tokens=60, priority=-i)) for i, prompt in enumerate(prompts)
            ]
            events = events_until_idle(loop)
            swapped.append(loop.counts().swapped_pages)
            return [answers(events, request)[0] for request in requests]

    def failing(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    swapped: list[int] = []
    whole = tokens()
    monkeypatch.setattr(SwapFile, fault, failing)
    assert tokens() == whole
    assert min(swapped) > 0
