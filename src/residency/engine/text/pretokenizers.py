"""How a byte-level BPE cuts text into words before it merges: one list of expressions for each pre-tokenizer.

A GGUF file names its pre-tokenizer in tokenizer.ggml.pre. Each expression is applied to what the one before it
left; matches and what lies between them become words. The expressions are the published ones of the model families
(GPT-2's encoder.py, tiktoken's o200k_base, the tokenizer.json files of the models named).
"""

from collections.abc import Callable
from dataclasses import dataclass

from residency.errors import UnsupportedError

CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
ANY_CASE_CONTRACTIONS = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
GPT2 = CONTRACTIONS + r"| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
WORDS_OF_CL100K = ANY_CASE_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
REST_OF_CL100K = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
REST_OF_O200K = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
DEEPSEEK_LETTERS = (  # escaped, as some would change when an editor composes characters
    "[A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-"
    "\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec"
    "\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-"
    "\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3"
    "\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17"
    "\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-"
    "\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943]"
)
CHINESE_AND_KOREAN = "[一-龥ࠀ-一가-퟿]+"


@dataclass(frozen=True, kw_only=True)
class PreTokenizer:
    """What a name in tokenizer.ggml.pre stands for."""

    expressions: tuple[str, ...]
    whole_words_first: bool = False  # a word that is a token is taken whole, without merging (tiktoken's rule)
    begins_with_bos: bool = False  # where the file does not say


_DEFAULT = PreTokenizer(expressions=(r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"))
_GPT2 = PreTokenizer(expressions=(GPT2,))
_SINGLE_DIGITS = PreTokenizer(expressions=(r"\p{N}", GPT2))
_LLAMA3 = PreTokenizer(
    expressions=(WORDS_OF_CL100K + "{1,3}" + REST_OF_CL100K,), whole_words_first=True, begins_with_bos=True
)
_QWEN2 = PreTokenizer(expressions=(WORDS_OF_CL100K + REST_OF_CL100K,))
_DEEPSEEK_LLM = PreTokenizer(
    expressions=(
        r"[\r\n]",
        r"\s?" + DEEPSEEK_LETTERS + "+",
        r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
        r"\s+$",
        CHINESE_AND_KOREAN,
        r"\p{N}+",
    )
)
_DEEPSEEK_CODER = PreTokenizer(expressions=(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CHINESE_AND_KOREAN, r"\p{N}"))
_TEKKEN = PreTokenizer(
    expressions=(
        rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*|\p{{N}}" + REST_OF_O200K,
    ),
    whole_words_first=True,
    begins_with_bos=True,
)
_GPT4O = PreTokenizer(
    expressions=(
        rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+(?i:{CONTRACTIONS})?"
        rf"|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*(?i:{CONTRACTIONS})?|\p{{N}}{{1,3}}" + REST_OF_O200K,
    )
)

PRE_TOKENIZERS = {
    "default": _DEFAULT,
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "roberta-bpe"), _GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"), _SINGLE_DIGITS),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3"), _LLAMA3),
    **dict.fromkeys(("qwen2", "stablelm2", "deepseek-r1-qwen", "hunyuan"), _QWEN2),
    "deepseek-llm": _DEEPSEEK_LLM,
    "deepseek-coder": _DEEPSEEK_CODER,
    "tekken": _TEKKEN,
    **dict.fromkeys(("gpt-4o", "llama4"), _GPT4O),
}


def find_pre_tokenizer(name: str) -> PreTokenizer:
    """The pre-tokenizer called `name` in a GGUF file. UnsupportedError names the known ones."""
    if name not in PRE_TOKENIZERS:
        raise UnsupportedError(
            f"The model's text is cut by the pre-tokenizer {name!r}, which residency does not know; it knows "
            f"{', '.join(sorted(PRE_TOKENIZERS))}."
        )
    return PRE_TOKENIZERS[name]


def word_cutter(expressions: tuple[str, ...]) -> Callable[[str], list[str]]:
    """A function from a text to its words, which joined are the text again."""
    from tokenizers import Regex, pre_tokenizers  # imported here: a model without it must not pay for it

    splits = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in expressions]
    cut = splits[0] if len(splits) == 1 else pre_tokenizers.Sequence(splits)

    def words(text: str) -> list[str]:
        return [word for word, _ in cut.pre_tokenize_str(text)] if text else []

    return words
