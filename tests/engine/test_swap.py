"""What is swapped out comes back as it was."""

from pathlib import Path

import numpy as np
import pytest

from residency.engine.swap import SwapFile, SwapSpace
from residency.errors import StoreError, UsageError
from support.engines import plan_of


def space_of(folder: Path, num_bytes: int = 1 << 20) -> SwapSpace:
    return SwapSpace(folder=folder, num_bytes=num_bytes, bytes_per_second=1e9)


def test_a_page_comes_back_from_its_slot(path: Path, tmp_path: Path) -> None:
    plan = plan_of(path)
    (group,) = plan.kv_groups
    random = np.random.default_rng(0)
    pages_NLB = random.integers(0, 256, (2, len(group.layers), group.page_bytes), np.uint8)
    found_LB = np.zeros_like(pages_NLB[0])
    with SwapFile(plan, space_of(tmp_path)) as file:
        for slot, page_LB in enumerate(pages_NLB):
            file.write(page_LB, group=0, slot=slot)
        file.read(found_LB, group=0, slot=0)
    np.testing.assert_array_equal(found_LB, pages_NLB[0])


def test_a_swap_file_has_no_name(path: Path, tmp_path: Path) -> None:
    with SwapFile(plan_of(path), space_of(tmp_path)):
        assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"1\.0 MiB to swap to could not be reserved"):
        SwapFile(plan_of(path), space_of(tmp_path / "missing"))


def test_a_space_of_no_bytes_is_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        space_of(tmp_path, num_bytes=0).slots(plan_of(path))
