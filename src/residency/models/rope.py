"""The frequencies of rotary position embeddings, with the scalings that models are published with.

Rotary embedding: Su et al. 2021 (arXiv:2104.09864). Linear: Chen et al. 2023 (arXiv:2306.15595). YaRN: Peng et al.
2023 (arXiv:2309.00071). Llama 3: the 3.1 model card's published scaling.
"""

import math

from residency.errors import FileError, UnsupportedError
from residency.models.configuration import Configuration
from residency.spec.model import RopeSpec


def rope_spec(
    parameters: Configuration,
    *,
    rope_theta: float,
    head_dim: int,
    max_context_tokens: int,
    divisors: tuple[float, ...] | None = None,
) -> RopeSpec:
    """The rotary embedding that `parameters` (config.json's rope_parameters or rope_scaling) describe.

    `divisors` divide the frequencies one by one, as GGUF's rope_freqs.weight does. UnsupportedError names a scaling
    that is not supported.
    """
    theta = parameters.number("rope_theta", rope_theta)
    if head_dim % 2 or theta <= 1:
        raise FileError(f"{parameters.source} asks for rotation with base {theta} of heads of {head_dim} values.")
    plain = tuple(theta ** (-i / head_dim) for i in range(0, head_dim, 2))
    parameters.refuse_unhandled()
    kind = parameters.text("rope_type", parameters.text("type", "default"))
    if kind in ("default", "none"):
        frequencies, factor = plain, 1.0
    elif kind == "linear":
        scale = parameters.number("factor")
        frequencies, factor = tuple(f / scale for f in plain), 1.0
    elif kind == "llama3":
        frequencies, factor = _llama3(parameters, plain, max_context_tokens), 1.0
    elif kind == "yarn":
        frequencies, factor = _yarn(parameters, plain, theta, max_context_tokens), _yarn_factor(parameters)
    else:
        raise UnsupportedError(
            f"{parameters.source} asks for the rope scaling {kind[:80]!r}; supported are linear, llama3 and yarn."
        )
    if divisors is not None:
        frequencies = tuple(f / d for f, d in zip(frequencies, divisors, strict=True))
    return RopeSpec(inverse_frequencies=frequencies, factor=factor)


def _llama3(parameters: Configuration, plain: tuple[float, ...], max_context_tokens: int) -> tuple[float, ...]:
    """Long wavelengths are stretched by `factor`, short ones kept, those between blended."""
    factor = parameters.number("factor")
    low, high = parameters.number("low_freq_factor"), parameters.number("high_freq_factor")
    original = parameters.integer("original_max_position_embeddings", max_context_tokens)
    if low >= high:
        raise FileError(f"{parameters.source} says low_freq_factor {low} and high_freq_factor {high}, not above it.")

    def scaled(frequency: float) -> float:
        turns = original * frequency / (2 * math.pi)
        blend = min(max((turns - low) / (high - low), 0.0), 1.0)
        return (1 - blend) * frequency / factor + blend * frequency

    return tuple(scaled(f) for f in plain)


def _yarn(
    parameters: Configuration, plain: tuple[float, ...], theta: float, max_context_tokens: int
) -> tuple[float, ...]:
    """Dimensions that turn often keep their frequency, those that turn seldom are divided by `factor`."""
    factor = parameters.number("factor")
    original = parameters.integer("original_max_position_embeddings", max_context_tokens)
    head_dim = 2 * len(plain)

    def dimension_of(turns: float) -> float:
        return head_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension_of(parameters.number("beta_fast", 32.0)), dimension_of(parameters.number("beta_slow", 1.0))
    if parameters.flag("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = high - low or 0.001

    def scaled(index: int, frequency: float) -> float:
        stretched = min(max((index - low) / width, 0.0), 1.0)
        return frequency / factor * stretched + frequency * (1 - stretched)

    return tuple(scaled(index, frequency) for index, frequency in enumerate(plain))


def _yarn_factor(parameters: Configuration) -> float:
    """YaRN's attention factor, which multiplies cosine and sine."""
    multiplier = parameters.number("yarn_multiplier", 1.0)
    if parameters.has("attention_factor"):
        return multiplier * parameters.number("attention_factor")
    factor = parameters.number("factor")

    def magnitude(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if parameters.has("mscale") and parameters.has("mscale_all_dim"):
        return multiplier * magnitude(parameters.number("mscale")) / magnitude(parameters.number("mscale_all_dim"))
    return multiplier * magnitude(1.0)
