"""Text to tokens and back, and conversations to prompts.

tokenizer = load_tokenizer(checkpoint)
template = load_chat_template(checkpoint)  # None where the model has none: give it plain prompts
ids = tokenizer.encode(template.render(messages), add_special=False)
decoder = StreamDecoder(tokenizer)
for token_id in answer:
    print(decoder.feed(token_id), end="")
print(decoder.flush())
"""

from pathlib import Path
from typing import Any

from residency.engine.text.gguf import tokenizer_from_gguf
from residency.engine.text.library import read_json, token_text, tokenizer_from_folder
from residency.engine.text.stream import StreamDecoder
from residency.engine.text.template import ChatTemplate
from residency.engine.text.tokenizer import Tokenizer
from residency.errors import FileError
from residency.paths import cache_folder
from residency.spec.checkpoint import Checkpoint

__all__ = [
    "ChatTemplate",
    "StreamDecoder",
    "Tokenizer",
    "load_chat_template",
    "load_tokenizer",
    "tokenizer_from_folder",
    "tokenizer_from_gguf",
]


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The checkpoint's tokenizer. A GGUF file's vocabulary is kept as tables in the cache folder after the first time.

    FileError if it is missing or contradicts itself, UnsupportedError for a kind that residency does not know.
    """
    if checkpoint.kind == "safetensors":
        return tokenizer_from_folder(checkpoint.path)
    kept_at = cache_folder() / "tokenizers" / f"{checkpoint.fingerprint}.tables"
    return tokenizer_from_gguf(checkpoint.config, kept_at=kept_at)


def load_chat_template(checkpoint: Checkpoint) -> ChatTemplate | None:
    """The checkpoint's chat template; None if it has none, and is best given plain prompts."""
    if checkpoint.kind == "safetensors":
        return _template_in_folder(checkpoint.path)
    source = checkpoint.config.get("tokenizer.chat_template")
    if not isinstance(source, str) or not source.strip():
        return None
    tokens = {"bos": "", "eos": ""}
    if any(f"{name}_token" in source for name in tokens):
        tokenizer = load_tokenizer(checkpoint)
        for name in tokens:
            token_id = checkpoint.config.get(f"tokenizer.ggml.{name}_token_id")
            tokens[name] = tokenizer.token_bytes(token_id).decode() if isinstance(token_id, int) else ""
    return ChatTemplate(source=source, bos_token=tokens["bos"], eos_token=tokens["eos"])


def _template_in_folder(folder: Path) -> ChatTemplate | None:
    config = read_json(folder / "tokenizer_config.json")
    source: Any = config.get("chat_template")
    if isinstance(source, list):  # several, by name
        source = {each.get("name"): each.get("template") for each in source if isinstance(each, dict)}.get("default")
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            source = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise FileError(f"{path} could not be read ({error}); fetch it again.") from error
    source = source or read_json(folder / "chat_template.json").get("chat_template")
    if not isinstance(source, str) or not source.strip():
        return None
    return ChatTemplate(
        source=source,
        bos_token=token_text(config, "bos_token") or "",
        eos_token=token_text(config, "eos_token") or "",
    )
