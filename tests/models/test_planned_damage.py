"""A configuration that is damaged is refused in one sentence, whatever is wrong with it."""

import json
from importlib.resources import files
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from residency.errors import ModelError
from residency.models.planned import planned_spec

CONFIGS: dict[str, dict[str, Any]] = {}
for file in files("residency.models.published").iterdir():
    if file.name.endswith(".json"):
        for entry in json.loads(file.read_text(encoding="utf-8")).values():
            CONFIGS.setdefault(entry["config"]["model_type"], entry["config"])
CONFIGS["quantized"] = CONFIGS["llama"] | {
    "quantization_config": {"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": {"num_bits": 4}}}}
}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 1 << 40) | st.floats() | st.sampled_from(["", "auto", "re:(", "gptq"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["quant_method", "weights", "bits", "hidden_size"]), inner, max_size=3)
    ),
    max_leaves=6,
)


def changed(config: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """The configuration with `key`, at any depth, set to `value`."""
    return {
        name: value if name == key else changed(held, key, value) if isinstance(held, dict) else held
        for name, held in config.items()
    }


def keys_of(config: dict[str, Any]) -> list[str]:
    return [*config, *(key for held in config.values() if isinstance(held, dict) for key in keys_of(held))]


@pytest.mark.parametrize("name", CONFIGS)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_of_any_key_gives_a_model_or_one_sentence(name: str, data: st.DataObject) -> None:
    config = CONFIGS[name]
    key = data.draw(st.sampled_from(sorted({*keys_of(config), "quantization_config", "layer_types"})))
    value = data.draw(VALUES)
    given_values = changed(config, key, value) | ({} if key in keys_of(config) else {key: value})
    try:
        model = planned_spec("model", "config.json", given_values)
    except ModelError as error:
        assert "\n" not in str(error)
    else:
        assert model.weight_bytes >= 0 and model.read_bytes_per_token >= 0
