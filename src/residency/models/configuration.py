"""A model's configuration, read with types: config.json as it is, GGUF's metadata under the same keys."""

from collections.abc import Container, Mapping, Sequence
from typing import Any

from residency.errors import FileError, UnsupportedError
from residency.spec.checkpoint import Checkpoint

LARGEST_INTEGER = 2**31 - 1

# GGUF's key, after "{architecture}.", by the key that `transformers` uses (ggml's docs/gguf.md).
GGUF_KEYS = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "max_position_embeddings": "context_length",
    "v_head_dim": "attention.value_length",
    "rotary_dim": "rope.dimension_count",
    "sliding_window": "attention.sliding_window",
    "sliding_window_pattern": "attention.sliding_window_pattern",
    "rope_theta": "rope.freq_base",
    "rope_local_base_freq": "rope.freq_base_swa",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "num_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
    "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
    "logits_scaling": "logit_scale",
    "residual_multiplier": "residual_scale",
    "embedding_multiplier": "embedding_scale",
    "attention_multiplier": "attention.scale",
    "clip_qkv": "attention.clamp_kqv",
    "rope_scale_linear": "rope.scale_linear",
}
GGUF_ROPE_KEYS = {
    "rope_type": "rope.scaling.type",
    "factor": "rope.scaling.factor",
    "original_max_position_embeddings": "rope.scaling.original_context_length",
    "beta_fast": "rope.scaling.yarn_beta_fast",
    "beta_slow": "rope.scaling.yarn_beta_slow",
    "yarn_multiplier": "rope.scaling.attn_factor",
    "yarn_attn_factor": "rope.scaling.yarn_attn_factor",
    "yarn_log_multiplier": "rope.scaling.yarn_log_multiplier",
}
# Keys whose value would change what the model computes, and the values that do not.
UNHANDLED: Mapping[str, tuple[float | None, ...]] = {
    "attn_logit_softcapping": (None, 0),
    "final_logit_softcapping": (None, 0),
    "mlp_bias": (None, False),
    "attention_bias": (None, False),
    "partial_rotary_factor": (None, 1),
    "use_bidirectional_attention": (None, False),
    "num_experts": (None, 0),
    "num_local_experts": (None, 0),
    "logits_scaling": (None, 0, 1),
    "residual_multiplier": (None, 0, 1),
    "embedding_multiplier": (None, 0, 1),
    "attention_multiplier": (None, 0),
    "clip_qkv": (None, 0),
    "is_causal": (None, True),
    "rope_scale_linear": (None, 0, 1),
    "yarn_attn_factor": (None, 1),
    "yarn_log_multiplier": (None, 0),
}


class Configuration:
    """Values by the keys of `transformers`. What is missing, of a wrong type or out of range is a FileError."""

    def __init__(
        self,
        source: str,
        values: Mapping[str, Any],
        names: Mapping[str, str] | None = None,
        *,
        architecture: str = "",
        asked: set[str] | None = None,
        sections: dict[str, "Configuration"] | None = None,
    ) -> None:
        self.source = source
        self.architecture = architecture
        self._values = values
        self._names = names or {}
        self._asked = set() if asked is None else asked
        self._sections = {} if sections is None else sections

    def has(self, key: str) -> bool:
        """Whether the key is there, and not null."""
        self._asked.add(key)
        return self._values.get(key) is not None

    def integer(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        """A whole number from `least` to 2^31 - 1; without a default it must be there."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= LARGEST_INTEGER:
            raise self._wrong(key, value, f"a whole number from {least} to {LARGEST_INTEGER}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A number from 1e-30 to 1e30; without a default it must be there."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 1e-30 <= value <= 1e30:
            raise self._wrong(key, value, "a positive number of a sensible size")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def text(self, key: str, default: str) -> str:
        """A string."""
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, value, "a string")
        return value

    def says(self, key: str, value: str | int) -> bool:
        """Whether the key holds exactly this, where others hold a value of another kind or range."""
        self._asked.add(key)
        return bool(self._values.get(key) == value)

    def is_list(self, key: str) -> bool:
        """Whether the key holds a list, where others hold a number."""
        self._asked.add(key)
        return isinstance(self._values.get(key), list)

    def length(self, key: str) -> int:
        """How long the list under `key` is."""
        self._asked.add(key)
        return len(self._values[key])

    def keys(self) -> list[str]:
        """All keys, in their order."""
        return list(self._values)

    def strings(self, key: str) -> list[str]:
        """A list of strings, however many."""
        value = self._value(key, None)
        if not isinstance(value, Sequence) or not all(isinstance(v, str) for v in value):
            raise self._wrong(key, value, "a list of strings")
        return list(value)

    def integers(self, key: str) -> list[int]:
        """A list of whole numbers; an empty one if the key is missing or null."""
        self._asked.add(key)
        value = self._values.get(key)
        if value is None:
            return []
        if not isinstance(value, Sequence) or not all(type(each) is int and each >= 0 for each in value):
            raise self._wrong(key, value, "a list of whole numbers")
        return list(value)

    def texts(self, key: str, count: int) -> list[str]:
        """A list of `count` strings."""
        value = self.strings(key)
        if len(value) != count:
            raise self._wrong(key, value, f"a list of {count} strings")
        return value

    def names(self, key: str) -> bool:
        """Whether the key is there, be it null."""
        self._asked.add(key)
        return key in self._values

    def flags(self, key: str, count: int) -> list[bool] | None:
        """A list of `count` truth values, or None if the key is missing or holds no list."""
        self._asked.add(key)
        value = self._values.get(key)
        if value is None or isinstance(value, str) or not hasattr(value, "__len__"):
            return None
        if len(value) != count:
            raise self._wrong(key, value, f"a list of {count} truth values")
        return [bool(each) for each in value]

    def section(self, key: str) -> "Configuration":
        """The nested object under `key`; an empty one if there is none."""
        self._asked.add(key)
        value = self._values.get(key)
        if value is not None and not isinstance(value, Mapping):
            raise self._wrong(key, value, "an object")
        held = self._sections.get(key)
        if held is None or held._values != (value or {}):
            held = Configuration(self.source, value or {}, self._names, architecture=self.architecture)
            self._sections[key] = held
        return held

    def sections(self) -> dict[str, "Configuration"]:
        """The nested objects that have been asked for."""
        return dict(self._sections)

    def with_defaults(self, **defaults: Any) -> "Configuration":
        """The same with `defaults` for the keys that are missing or null."""
        present = {key: value for key, value in self._values.items() if value is not None or key not in defaults}
        return self._with({**defaults, **present})

    def with_changes(self, **changes: Any) -> "Configuration":
        """The same with other values."""
        return self._with({**self._values, **changes})

    def unasked(self) -> dict[str, Any]:
        """What the configuration says and nobody has asked for."""
        return {key: value for key, value in self._values.items() if key not in self._asked}

    def unsupported(self, key: str) -> UnsupportedError:
        """The error for a key whose value is not handled."""
        name, value = self._names.get(key, key), repr(self._values.get(key))[:80]
        return UnsupportedError(
            f"{self.source} sets {name[:80]} to {value}, which is not supported; choose another model."
        )

    def _with(self, values: Mapping[str, Any]) -> "Configuration":
        return Configuration(
            self.source,
            values,
            self._names,
            architecture=self.architecture,
            asked=self._asked,
            sections=self._sections,
        )

    def refuse_unhandled(self, but: Container[str] = ()) -> None:
        """UnsupportedError if a key, `but` those, would change the result in a way that is not implemented."""
        for key, harmless in UNHANDLED.items():
            value = None if key in but else self._values.get(key)
            if value is not None and (not isinstance(value, int | float) or value not in harmless):
                raise self.unsupported(key)

    def _value(self, key: str, default: Any) -> Any:
        self._asked.add(key)
        value = self._values.get(key)
        if value is None:
            value = default
        if value is None:
            raise FileError(f"{self.source} does not say {self._names.get(key, key)}; fetch the model again.")
        return value

    def _wrong(self, key: str, value: object, expected: str) -> FileError:
        name = self._names.get(key, key)
        return FileError(f"{self.source} says {name} is {repr(value)[:80]}, which is not {expected}.")


def configuration(checkpoint: Checkpoint) -> Configuration:
    """The checkpoint's configuration, under the keys that `transformers` uses."""
    if checkpoint.kind == "safetensors":
        return Configuration(str(checkpoint.path / "config.json"), checkpoint.config)
    prefix = checkpoint.architecture + "."
    values: dict[str, Any] = {key: checkpoint.config.get(prefix + name) for key, name in GGUF_KEYS.items()}
    scaling = {key: checkpoint.config.get(prefix + name) for key, name in GGUF_ROPE_KEYS.items()}
    values["rope_scaling"] = {key: value for key, value in scaling.items() if value is not None}
    values["tie_word_embeddings"] = "output.weight" not in checkpoint.tensors
    names = {key: prefix + name for key, name in (GGUF_KEYS | GGUF_ROPE_KEYS).items()}
    return Configuration(str(checkpoint.path), values, names)
