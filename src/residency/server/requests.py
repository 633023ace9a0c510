"""What clients may ask: OpenAI's fields, a few of our own, each with its bounds. What is not known is refused."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_STOPS, MAX_STOP_CHARACTERS = 16, 256
MAX_BIASED_TOKENS = 1024
MAX_ANSWERS = 16
MAX_MESSAGES = 4096
MAX_TOOLS = 128
MAX_PROMPTS = 64
MAX_TOP_LOGPROBS = 20
MAX_TOKEN_ID = 2**31 - 1

Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]
Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
TokenId = Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)]
Bias = Annotated[float, Field(ge=-100, le=100)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Ignored = Annotated[Any, Field(description="Accepted for the sake of clients that send it; changes nothing.")]


class Asked(BaseModel):
    """Base of everything that is read from a request."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class StreamOptions(Asked):
    """How a stream ends."""

    include_usage: bool = Field(False, description="A last chunk before [DONE] has the number of tokens.")
    include_obfuscation: Ignored = None


class GenerationRequest(Asked):
    """What both kinds of generation have in common."""

    model: str = Field(max_length=512, description="The name that /v1/models gives.")
    max_tokens: int | None = Field(None, ge=1, description="Tokens of the answer at most.")
    temperature: float | None = Field(None, ge=0, le=2, description="0 takes the likeliest token; default 1.")
    top_p: float | None = Field(None, gt=0, le=1, description="Only the likeliest that together have this probability.")
    top_k: int | None = Field(None, ge=1, description="Only the k likeliest tokens.")
    min_p: float | None = Field(None, ge=0, le=1, description="Only those with this part of the best's probability.")
    presence_penalty: Penalty | None = Field(None, description="Subtracted for a token that the answer has.")
    frequency_penalty: Penalty | None = Field(None, description="Subtracted for each time the answer has a token.")
    repetition_penalty: float | None = Field(None, ge=0.01, le=10, description="Above 1: avoid tokens that occurred.")
    logit_bias: dict[Annotated[str, Field(pattern=r"^[0-9]{1,10}$")], Bias] | None = Field(
        None, max_length=MAX_BIASED_TOKENS, description="Added to the logits of tokens, by their number."
    )
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1, description="Equal seeds give equal answers.")
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = Field(
        None, description="Texts before which the answer ends."
    )
    n: int | None = Field(None, ge=1, le=MAX_ANSWERS, description="Answers to the same prompt; default 1.")
    stream: bool | None = Field(None, description="Send the answer as server-sent events, as it comes.")
    stream_options: StreamOptions | None = None
    ignore_eos: bool = Field(False, description="Go on after an end-of-text token, for measuring.")
    cache_salt: str | None = Field(
        None, min_length=1, max_length=256, description="Share cached prefixes only with requests of the same salt."
    )
    priority: int = Field(0, ge=-1000, le=1000, description="Smaller runs sooner.")
    user: Ignored = None
    metadata: Ignored = None
    store: Ignored = None
    service_tier: Ignored = None
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the number of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> "GenerationRequest":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options are for streams; set stream to true, or leave them away")
        return self


class TextPart(Asked):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


Content = str | Annotated[list[TextPart], Field(max_length=MAX_MESSAGES)]


class FunctionCall(Asked):
    """A call that the assistant made."""

    name: Name
    arguments: str = Field(description="A JSON object, as text.")


class ToolCall(Asked):
    """A tool call in an earlier answer."""

    id: str = Field(max_length=256)
    type: Literal["function"] = "function"
    function: FunctionCall


class SystemMessage(Asked):
    """How the assistant is to behave."""

    role: Literal["system", "developer"]
    content: Content
    name: str | None = None


class UserMessage(Asked):
    """What somebody says."""

    role: Literal["user"]
    content: Content
    name: str | None = None


class AssistantMessage(Asked):
    """An earlier answer."""

    role: Literal["assistant"]
    content: Content | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=MAX_TOOLS)] | None = None
    name: str | None = None
    refusal: Ignored = None
    annotations: Ignored = None
    audio: Ignored = None
    function_call: Ignored = None


class ToolMessage(Asked):
    """What a tool answered."""

    role: Literal["tool"]
    content: Content
    tool_call_id: str = Field(max_length=256)
    name: str | None = None


Message = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class FunctionDefinition(Asked):
    """A function that the model may call."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="A JSON schema of an object.")
    strict: bool | None = None


class Tool(Asked):
    """A tool that the model may use."""

    type: Literal["function"]
    function: FunctionDefinition


class FunctionName(Asked):
    """Names a function."""

    name: Name


class NamedTool(Asked):
    """The one tool that the model must use."""

    type: Literal["function"]
    function: FunctionName


class NamedSchema(Asked):
    """A JSON schema for the answer."""

    name: Name
    description: str | None = None
    schema_: dict[str, Any] = Field({}, alias="schema")
    strict: bool | None = None


class TextFormat(Asked):
    """An answer in any form."""

    type: Literal["text"]


class JsonObjectFormat(Asked):
    """An answer that is a JSON object."""

    type: Literal["json_object"]


class JsonSchemaFormat(Asked):
    """An answer that a JSON schema describes."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class ChatRequest(GenerationRequest):
    """A conversation to go on with."""

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1, description="As max_tokens; OpenAI's newer name.")
    logprobs: bool | None = Field(None, description="Give the log probability of each token.")
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS, description="And those of the likeliest.")
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: Ignored = None
    chat_template_kwargs: dict[str, bool | int | float | str] | None = Field(
        None, max_length=32, description="Names that the chat template may read, such as enable_thinking."
    )

    @property
    def wanted_tokens(self) -> int | None:
        """Tokens of the answer at most."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def num_logprobs(self) -> int | None:
        """Likeliest tokens whose log probabilities are wanted beside the chosen one's; None for no log probability."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @model_validator(mode="after")
    def _fields_agree(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs; set logprobs to true, or leave top_logprobs away")
        names = [tool.function.name for tool in self.tools or ()]
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ValueError(f"tool_choice names {self.tool_choice.function.name}, which is none of the tools")
        if self.tool_choice == "required" and not names:
            raise ValueError("tool_choice is required and there are no tools; give tools, or leave it away")
        return self


Prompts = (
    str
    | Annotated[list[TokenId], Field(min_length=1)]
    | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]
    | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1, max_length=MAX_PROMPTS)]
)


class CompletionRequest(GenerationRequest):
    """A text to go on with."""

    prompt: Prompts = Field(description="A text or its tokens, or several of either.")
    max_tokens: int | None = Field(None, ge=0, description="Tokens of the answer at most; default 16.")
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS, description="Log probabilities of so many tokens.")
    echo: bool = Field(False, description="Begin the answer with the prompt, and with its log probabilities.")
    response_format: ResponseFormat | None = None
    suffix: None = Field(None, description="Not supported.")
    best_of: None = Field(None, description="Not supported.")

    @property
    def prompts(self) -> tuple[str | tuple[int, ...], ...]:
        """Each prompt, as a text or as tokens."""
        if isinstance(self.prompt, str):
            return (self.prompt,)
        if isinstance(self.prompt[0], int):
            return (tuple(self.prompt),)
        return tuple(each if isinstance(each, str) else tuple(each) for each in self.prompt)


class TokenizeRequest(Asked):
    """A text, or a conversation, whose tokens are wanted."""

    model: str | None = Field(None, max_length=512)
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)] | None = None
    tools: list[Tool] | None = Field(None, max_length=MAX_TOOLS)
    add_special_tokens: bool = Field(True, description="With the tokens that the model wants around a text.")

    @model_validator(mode="after")
    def _one_of_both(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self


class DetokenizeRequest(Asked):
    """Tokens whose text is wanted."""

    model: str | None = Field(None, max_length=512)
    tokens: list[TokenId] = Field(max_length=1 << 20)
