"""Answers that must be JSON: a schema compiled by llguidance, and before each token the mask of those that may come."""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from residency.engine.text import Tokenizer
from residency.server.problems import Refused
from residency.server.schemas import check_schema, schema_refused

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MAX_GRAMMAR_BYTES = 1 << 16
ANY_OBJECT: Mapping[str, Any] = {"type": "object"}

# What a schema of a stranger may cost: a lexer's state takes 1 to 2 kB; fuel is spent at 50,000 (when compiling) and
# 14,000 (at each token) a millisecond (llguidance's documentation of LLParserLimits).
_MAX_LEXER_STATES = 2_000
_COMPILE_FUEL = 1_000_000
_STEP_FUEL = 100_000
_MAX_SYMBOLS = 50_000
_WHITESPACE = r"[\x20\x0A\x0D\x09]{0,32}"  # between two parts of JSON: a weak model would go on with it for ever


class Grammars:
    """Compiles constraints for the answers of one model. The first takes longer: it sorts the vocabulary."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: int) -> None:
        """vocabulary: of the model's logits, which may have more rows than there are tokens."""
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary

    def of_schema(self, schema: Mapping[str, Any]) -> "Constraint":
        """Answers that the JSON schema describes. Refused if it is too large, too complex or none. Takes a while: not
        for the event loop.
        """
        from llguidance import LLMatcher

        check_schema(schema)
        try:
            text = json.dumps(schema)
            _check_size(text)
            grammar = LLMatcher.grammar_from_json_schema(text, defaults={"whitespace_pattern": _WHITESPACE})
        except (RecursionError, ValueError):
            raise schema_refused("it is nested too deeply") from None
        return self._constraint(grammar)

    def of_lark(self, grammar: str) -> "Constraint":
        """Answers of a grammar in llguidance's Lark. Refused as above."""
        from llguidance import LLMatcher

        _check_size(grammar)
        return self._constraint(LLMatcher.grammar_from_lark(grammar))

    def _constraint(self, grammar: str) -> "Constraint":
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(
            initial_lexer_fuel=_COMPILE_FUEL,
            step_lexer_fuel=_STEP_FUEL,
            max_lexer_states=_MAX_LEXER_STATES,
            max_grammar_size=_MAX_SYMBOLS,
            verbose_errors=False,
        )
        matcher = LLMatcher(self._vocabulary_tree, grammar, log_level=0, limits=limits)
        if matcher.is_error():
            raise schema_refused(matcher.get_error())
        return Constraint(matcher, self._vocabulary)

    @cached_property
    def _vocabulary_tree(self) -> "LLTokenizer":
        from llguidance import LLTokenizer, TokenizerWrapper

        if not self._tokenizer.eos_ids:
            raise schema_refused("the model has no token that ends an answer")
        wrapper: Any = TokenizerWrapper(_Vocabulary(self._tokenizer, self._vocabulary))
        return LLTokenizer(wrapper, n_vocab=self._vocabulary, eos_token=sorted(self._tokenizer.eos_ids))


class Constraint:
    """What one answer may go on with: call it with the answer's tokens so far for the mask of the next."""

    def __init__(self, matcher: "LLMatcher", vocabulary: int) -> None:
        self._matcher = matcher
        self._num_consumed = 0
        self.failure: Refused | None = None  # why the answer could not go on
        self._mask = np.zeros(-(-vocabulary // 32), np.int32)

    def __call__(self, answer: Sequence[int]) -> npt.NDArray[np.int32]:
        """Bit t % 32 of word t // 32 is set where token t may come. The next call overwrites it.

        Refused if the grammar becomes too complex at this place.
        """
        if len(answer) > self._num_consumed:
            self._matcher.consume_tokens([int(token) for token in answer[self._num_consumed :]])
            self._num_consumed = len(answer)
        if not self._matcher.is_error():
            self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        if self._matcher.is_error():
            self.failure = schema_refused(self._matcher.get_error())
            raise self.failure
        return self._mask

    def copy(self) -> "Constraint":
        """The same for another answer."""
        return Constraint(self._matcher.deep_copy(), len(self._mask) * 32)


class _Vocabulary:
    """A tokenizer as llguidance reads it."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: int) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = min(tokenizer.eos_ids)
        self.bos_token_id = tokenizer.bos_id
        self.tokens = [tokenizer.token_bytes(token) for token in range(vocabulary)]
        self.special_token_ids = [token for token in range(tokenizer.vocabulary) if tokenizer.is_special(token)]

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special=False, parse_special=False)


def _check_size(grammar: str) -> None:
    if len(grammar) > MAX_GRAMMAR_BYTES:
        raise schema_refused(f"it has {len(grammar)} bytes, and the most is {MAX_GRAMMAR_BYTES}")
