"""What PyTorch's allocator counts as allocated."""

from residency.planner.caching_allocator import MIB, allocated_bytes


def test_small_arrays_take_whole_512_bytes() -> None:
    assert allocated_bytes([1, 512, 513]) == 512 + 512 + 1024


def test_a_large_array_keeps_a_rest_of_up_to_1_mib() -> None:
    assert allocated_bytes([11 * MIB]) == 12 * MIB


def test_a_larger_rest_is_cut_off() -> None:
    assert allocated_bytes([12 * MIB + 1024]) == 12 * MIB + 1024


def test_arrays_below_10_mib_share_segments_of_20() -> None:
    assert allocated_bytes([9 * MIB, 9 * MIB]) == 18 * MIB


def test_a_segments_last_array_keeps_its_rest() -> None:
    assert allocated_bytes([9 * MIB, 9 * MIB, 3 * MIB // 2]) == 9 * MIB + 9 * MIB + 2 * MIB


def test_the_smallest_free_block_that_holds_an_array_is_taken() -> None:
    """Of 4 MiB left and of 11 MiB left, an array of 3.5 MiB gets the former, with its rest."""
    assert allocated_bytes([8 * MIB, 8 * MIB, 9 * MIB, 7 * MIB // 2]) == 8 * MIB + 8 * MIB + 9 * MIB + 4 * MIB
