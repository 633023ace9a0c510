"""How much memory a process takes beside a model's weights. Run: `python -m residency.engine.footprint [MODEL]`.

Imports what a run imports, links kernels, starts threads and, where a model is named, opens its headers and tokenizer,
renders its chat template and samples once. Prints the peak of its resident bytes.
"""

import sys
from pathlib import Path

import numpy as np

import residency.cli.run  # noqa: F401  (what is imported is what is measured)
from residency.engine.arena import peak_resident_bytes
from residency.engine.executor import DRIVERS
from residency.engine.sampler import Sampler, Sampling
from residency.engine.text import StreamDecoder, load_chat_template, load_tokenizer
from residency.engine.workers import Workers
from residency.kernels.library import Library
from residency.models.specs import model_spec
from residency.spec.opening import open_checkpoint


def main() -> None:
    """Print the bytes."""
    with Workers(Library(DRIVERS), threads=2):
        if len(sys.argv) > 1:
            _open_texts(Path(sys.argv[1]))
        print(peak_resident_bytes())


def _open_texts(path: Path) -> None:
    checkpoint = open_checkpoint(path)
    spec = model_spec(checkpoint)
    tokenizer = load_tokenizer(checkpoint)
    template = load_chat_template(checkpoint)
    text = "Why does memory bandwidth limit a language model?"
    if template is not None:
        text = template.render([{"role": "user", "content": text}])
    decoder = StreamDecoder(tokenizer)
    for token in tokenizer.encode(text, add_special=True):
        decoder.feed(token)
    Sampler(Sampling()).sample(np.zeros(spec.vocabulary, np.float32), np.zeros(1, np.int64))


if __name__ == "__main__":
    main()
