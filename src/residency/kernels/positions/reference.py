"""What follows from positions, defined in plain NumPy; never optimised. Shape suffixes: T tokens, S sequences, P pages,
H half of a head.
"""

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


def splits(positions_T: Ints, *, page_tokens: int, pages_per_split: int, max_splits: int, num_int8: int) -> Ints:
    """One part for every `pages_per_split` whole or begun pages, 1 to `max_splits`; 1 after `num_int8` tokens."""
    splits_T = np.clip((positions_T // page_tokens + 1) // pages_per_split, 1, max_splits)
    splits_T[num_int8:] = 1
    return splits_T


def slots(positions_T: Ints, sequences_T: Ints, tables_SP: npt.NDArray[np.int32], *, page_tokens: int) -> Ints:
    """The page of each token's sequence that its position lies in, times `page_tokens`, and its place there."""
    pages_T = tables_SP[sequences_T, positions_T // page_tokens].astype(np.int64)
    return pages_T * page_tokens + positions_T % page_tokens


def angles(positions_T: Ints, frequencies_H: npt.NDArray[np.float64], factor: float) -> npt.NDArray[np.float32]:
    """Cosines | sines (tokens, 2 * half)."""
    phases_TH = np.multiply.outer(positions_T, frequencies_H)
    return (factor * np.concatenate([np.cos(phases_TH), np.sin(phases_TH)], axis=1)).astype(np.float32)
