"""How much memory a process of residency takes before it holds a model. Run: `python -m residency.engine.footprint`.

Imports all that a run imports, links kernels, renders a chat template, prints the peak of its resident bytes.
"""

import residency.cli.run  # noqa: F401  (what is imported is what is measured)
from residency.engine.arena import peak_resident_bytes
from residency.engine.executor import DRIVERS
from residency.engine.text import ChatTemplate
from residency.engine.workers import Workers
from residency.kernels.library import Library

_USUAL = ("norm.rms", "rotary.rotate_and_store", "attention.attend", "attention.combine", "gate.silu", "matmul.Q4_1")


def main() -> None:
    """Print the bytes."""
    with Workers(Library([*_USUAL, *DRIVERS]), threads=2):
        ChatTemplate(source="{{ messages[0].content }}", bos_token="", eos_token="").render(
            [{"role": "user", "content": "hello"}]
        )
        print(peak_resident_bytes())


if __name__ == "__main__":
    main()
