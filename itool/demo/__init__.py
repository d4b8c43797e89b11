"""The built-in task: a generator of tool-use examples, and the small pre-trained base model that learns it."""

from pathlib import Path


def base_model_path() -> Path:
    """The folder of the shipped base model, which transformers and vLLM load."""
    return Path(__file__).parent / "base"
