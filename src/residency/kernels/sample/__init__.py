"""From logits to tokens: the likeliest are found in the step; engine/sampler.py draws others, a device by gpu.py."""

from dataclasses import dataclass

from residency.kernels.recorder import Array, FloatArray, Recorder, address_of, row_bytes


@dataclass(frozen=True, kw_only=True)
class Likeliest:
    """The largest logit of each part of each row, and its token, of equals the first: both (rows, parts)."""

    values: FloatArray
    tokens: Array

    def of_rows(self, num_rows: int) -> list[int]:
        """The tokens of the first rows, once the step has run."""
        parts = self.values[:num_rows].argmax(axis=1).tolist()
        return [tokens[part] for tokens, part in zip(self.tokens[:num_rows].tolist(), parts, strict=True)]


def likeliest(step: Recorder, logits: FloatArray, vocabulary: int) -> Likeliest:
    """The likeliest token of each row of logits (rows, at least `vocabulary`) that the step gives."""
    values, tokens = step.buffers["largest_logits"], step.buffers["likeliest_tokens"]
    assert values.strides == tokens.strides and tokens.dtype == "int32"
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
    return Likeliest(values=values, tokens=tokens)
