"""The records that cross a process: one JSON object per line, frozen, unknown fields refused.

    Example -> Score -> SearchTree -> PreferencePair -> Prediction

*Example* is a training record, *sample* one draw of a model, *step* a piece of a response. Token ids are ids of the base model's
tokenizer; probabilities are natural, not logarithmic.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

SCHEMA_VERSION = 1
"""Version of every record below; stands in the manifest as `schema`."""

Difficulty = Literal["easy", "medium", "hard"]
DIFFICULTIES: tuple[Difficulty, ...] = ("easy", "medium", "hard")


class Record(BaseModel):
    """Base of all records."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Tool(Record):
    """A function that the model may call. `parameters` is a JSON Schema object, as in OpenAI's `tools`."""

    name: Annotated[str, Field(min_length=1)]
    description: str = ""
    parameters: dict[str, Any] = Field(default_factory=lambda: {"type": "object", "properties": {}})


class ToolCall(Record):
    """A call of one tool with typed arguments."""

    name: Annotated[str, Field(min_length=1)]
    arguments: dict[str, Any] = Field(default_factory=dict)


class Message(Record):
    """One turn of the conversation before the answer."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str


class Example(Record):
    """A query with its candidate tools and the ground-truth response: either calls, or text when no tool fits.

    `response` is the exact ground-truth text that the model is trained on; `calls` is its meaning (empty for a text answer).
    Without `response` (data that has only a checker) an example can be searched and evaluated but not trained on.
    """

    id: Annotated[str, Field(min_length=1)]
    messages: Annotated[list[Message], Field(min_length=1)]
    tools: list[Tool] = Field(default_factory=list)
    calls: list[ToolCall] = Field(default_factory=list)
    response: str | None = None
    difficulty: Difficulty | None = None
    source: str = ""

    @property
    def stratum(self) -> Literal["calls", "text"]:
        """Which kind of answer is right: `calls`, or `text` when no tool fits."""
        return "calls" if self.calls else "text"


class Score(Record):
    """How hard one buffer example is for the current policy. Eq. (4).

    `perplexity` of the ground truth, unless the example has only a checker, or selection goes by the pass rate of a policy behind vLLM;
    `pass_rate` is the share of right samples, when selection goes by it; `sampled_tokens` counts all tokens of those samples.
    """

    example_id: str
    stratum: Literal["calls", "text"]
    perplexity: Annotated[float, Field(ge=1.0 - 1e-6)] | None = None
    pass_rate: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    sampled_tokens: Annotated[int, Field(ge=0)] = 0
    selected: bool = False


class PassCount(Record):
    """How many of an example's samples are right; `tokens` counts all sampled tokens."""

    example_id: str
    samples: int
    correct: int
    tokens: int


class ExamplePerplexity(Record):
    """Perplexity of an example's ground-truth response, over its `response_tokens` tokens. Eq. (4)."""

    example_id: str
    perplexity: Annotated[float, Field(ge=1.0 - 1e-6)]
    response_tokens: Annotated[int, Field(ge=1)]


class Node(Record):
    """One state of a stored search tree: the step that leads to it and its statistics at the end of the search.

    `parent` is an index into `SearchTree.nodes` (None for the root, which has no step). `visits` is N(s), `value` V(s), `action_value`
    Q(s,a) of the step, `prior` p(a|s), `outcome` O(s), `confidence` C(s) or None when self-evaluation is off, `correct` whether a
    terminal state matches the ground truth, `injected` whether only the ground truth led here, never a sample.
    """

    parent: int | None
    step_ids: list[int]
    text: str
    prior: float
    visits: int
    value: float
    action_value: float = 0.0
    outcome: float
    confidence: float | None = None
    terminal: bool = False
    correct: bool | None = None
    injected: bool = False


class SearchTree(Record):
    """A finished search for one example. `stopped` says why it ended (a fixed phrase, counted in the manifest)."""

    example_id: str
    prompt_ids: list[int]
    nodes: list[Node]
    stopped: str
    simulations: int
    sampled_tokens: int
    samples: int
    correct_samples: int

    @model_validator(mode="after")
    def _parents_come_first(self) -> SearchTree:
        for index, node in enumerate(self.nodes):
            if (node.parent is None) != (index == 0) or (node.parent is not None and node.parent >= index):
                raise ValueError(f"node {index} of tree {self.example_id} has parent {node.parent}")
        return self


class PreferencePair(Record):
    """Two sibling steps after the same state. `prompt_ids + prefix_ids` is the state; the sides carry no EOS unless they sampled one.

    `prefix_ids + chosen_ids + ending_ids` is a right response of the tree, end of turn included. `node_path` leads to the state in the
    stored tree: indices of its nodes from the root's child on, empty for the root.
    """

    example_id: str
    prompt_ids: list[int]
    prefix_ids: list[int]
    chosen_ids: Annotated[list[int], Field(min_length=1)]
    rejected_ids: Annotated[list[int], Field(min_length=1)]
    ending_ids: list[int] = Field(default_factory=list)
    chosen_value: float
    rejected_value: float
    chosen_visits: int
    rejected_visits: int
    chosen_correct: int
    rejected_wrong: int
    injected: bool = False
    node_path: list[int] = Field(default_factory=list)


class AcceptedSample(Record):
    """A sampled response that is right: what rejection sampling trains on, once however often it was drawn."""

    example_id: str
    prompt_ids: list[int]
    response_ids: Annotated[list[int], Field(min_length=1)]


class Prediction(Record):
    """What the policy answered to one held-out example, and the verdict.

    `error` is None when correct, else a fixed phrase (`wrong_argument`, `wrong_tool`, `missing_call`, `extra_call`,
    `call_instead_of_text`, `text_instead_of_call`, `unparseable`).
    """

    example_id: str
    text: str
    calls: list[ToolCall]
    correct: bool
    error: str | None = None
    difficulty: Difficulty | None = None
    stratum: Literal["calls", "text"]
    response_tokens: int
    truncated: bool = False
