"""Sentences around the slots: greetings, joints between wishes, small talk, and the answers when no tool fits."""

from __future__ import annotations

OPENERS = (
    "", "", "", "", "please ", "can you ", "could you please ", "hi, ", "hello, ", "hey, ", "I would like this: ", "next job: ",
    "when you have a moment, ", "quick one: ",
)  # fmt: skip
JOINTS = (" and then ", ". Also ", ", and ", ". After that, ", "; besides, ", ". Then ")
ENDINGS = ("", ".", ".", "!", ", thanks.", " please.")

NO_TOOL_ANSWERS = (
    "None of the tools can do that.",
    "Sorry, no tool here fits.",
    "I have no tool for this request.",
    "That is not something these tools can do.",
    "There is no suitable tool for that.",
)

SMALL_TALK = (
    "tell me a joke about a {}", "what do you think of the {}", "write a poem about a {}", "why do people like a {}",
    "who invented the {}", "how do I draw a {}", "what rhymes with {}", "sing a song about the {}",
)  # fmt: skip
GENERAL_SMALL_TALK = (
    "what does {} mean", "how old is the {}", "do you like {}", "explain {} to a child", "is a {} better than a {}", "thank you for the {}",
    "spell {}", "give me a riddle about {}",
)  # fmt: skip
