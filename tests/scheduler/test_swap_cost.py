"""Pages are copied to the next tier where that is quicker."""

import pytest

from residency.scheduler import SwapCost


@pytest.mark.parametrize(("copy_bytes_per_second", "pays"), [(1000.0, False), (6000.0, True)])
def test_swapping_pays_where_copying_twice_is_quicker_than_computing(copy_bytes_per_second: float, pays: bool) -> None:
    """32 tokens at 10 tokens/s take 3.2 s; 2 pages of 4000 bytes, there and back, 16000 bytes."""
    cost = SwapCost(prefill_tokens_per_second=10.0, copy_bytes_per_second=copy_bytes_per_second, page_bytes=(4000,))
    assert cost.pays(computed_tokens=32, held_pages=(2,)) == pays
