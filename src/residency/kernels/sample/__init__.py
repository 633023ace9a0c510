"""From logits to tokens: the likeliest are found in the step; engine/sampler.py draws others, a device by gpu.py."""

from residency.kernels.recorder import Array, FloatArray, Recorder, address_of, row_bytes


def likeliest(step: Recorder, logits: FloatArray, vocabulary: int, values: FloatArray, tokens: Array) -> None:
    """values, tokens (rows, parts) = the largest logit and its token, of equals the first, in each part of each row.

    logits (rows, at least `vocabulary`) of what logits are wanted of. A row's token is that of its first largest value.
    """
    assert values.shape == tokens.shape and values.strides == tokens.strides and tokens.dtype == "int32"
    step.launch(
        "sample.likeliest",
        logits=address_of(logits),
        logits_stride=row_bytes(logits),
        vocabulary=vocabulary,
        parts=values.shape[1],
        values=address_of(values),
        tokens=address_of(tokens),
        out_stride=row_bytes(values),
        tokens_at=step.inputs.num_logits,
    )
