"""Data sets as examples: `load_examples` is the only way in, one module per format behind it."""

from itool.data.sources.load import Loaded, load_examples

__all__ = ["Loaded", "load_examples"]
