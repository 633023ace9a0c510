"""Samples of a text: what a model is calibrated on, and what it is judged on. Shape suffixes: S samples, T tokens."""

import numpy as np
import numpy.typing as npt

from residency.engine.text import Tokenizer
from residency.errors import UsageError

Tokens = npt.NDArray[np.int64]


def usual_text() -> str:
    """Text to calibrate on where nobody gives any: the reference of the Python that runs this, prose with code."""
    from pydoc_data.topics import topics  # imported here: half a megabyte that few need

    return "\n\n".join(topics[name] for name in sorted(topics))


def spread_samples(tokenizer: Tokenizer, text: str, num_samples: int, tokens: int) -> Tokens:
    """Samples from all over the text, at even distances, (samples, tokens). UsageError where it is too short."""
    ids = np.asarray(tokenizer.encode(text, add_special=False, parse_special=False), np.int64)
    if len(ids) < num_samples * tokens:
        raise UsageError(
            f"the calibration text has {len(ids)} tokens and {num_samples} samples of {tokens} need "
            f"{num_samples * tokens}; give a longer one, or --samples {max(1, len(ids) // tokens)}."
        )
    starts = np.linspace(0, len(ids) - tokens, num_samples).astype(np.int64)
    return _begun(tokenizer, np.stack([ids[start : start + tokens] for start in starts]))


def first_samples(tokenizer: Tokenizer, text: str, num_samples: int, tokens: int) -> Tokens:
    """The text's first `num_samples` consecutive samples, or as many as there are, (samples, tokens).

    They are the chunks that `residency evaluate` scores. UsageError where there is not even one.
    """
    ids = np.asarray(tokenizer.encode(text, add_special=True, parse_special=False), np.int64)
    count = min(num_samples, len(ids) // tokens)
    if not count:
        raise UsageError(f"the text has {len(ids)} tokens, too few for one sample of {tokens}; give a longer one.")
    return _begun(tokenizer, ids[: count * tokens].reshape(count, tokens).copy())


def _begun(tokenizer: Tokenizer, samples_ST: Tokens) -> Tokens:
    """With the begin token first, where the tokenizer adds one."""
    begins_with = tokenizer.encode("", add_special=True)
    if begins_with and begins_with[0] == tokenizer.bos_id:
        samples_ST[:, 0] = begins_with[0]
    return samples_ST
