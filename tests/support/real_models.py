"""Real models, for tests that use them where they are: nothing is fetched by a test."""

import os
from pathlib import Path

import pytest

from residency.paths import cache_folder

USERS_CACHE = cache_folder()  # looked at before the tests have a cache folder of their own
FILES = {
    "smollm2-135m": ("smollm2",),
    "qwen2.5-coder-0.5b": ("qwen2.5-coder-0.5b-instruct",),
    "qwen2.5-coder-1.5b": ("qwen2.5-coder-1.5b-instruct",),
}


def real_model(name: str) -> Path:
    """The GGUF file of a model, from $RESIDENCY_TEST_MODELS or what `residency pull` has fetched; else a skip."""
    folders = [USERS_CACHE / "models" / name]
    if chosen := os.environ.get("RESIDENCY_TEST_MODELS"):
        folders.insert(0, Path(chosen))
    for folder in folders:
        for path in sorted(folder.glob("*.gguf")):
            if path.name.lower().startswith(FILES[name]):
                return path
    pytest.skip(f"{name} is neither in $RESIDENCY_TEST_MODELS nor pulled")


def wikitext() -> Path:
    """WikiText-2's raw test text, from $RESIDENCY_SHARED or beside the checkout; else a skip."""
    shared = Path(os.environ.get("RESIDENCY_SHARED", Path(__file__).parents[3] / "shared"))
    path = shared / "data" / "wikitext-2-raw" / "test.txt"
    if not path.is_file():
        pytest.skip(f"no WikiText-2 at {path}; set RESIDENCY_SHARED")
    return path
