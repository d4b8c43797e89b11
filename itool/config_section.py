"""What every configuration section is made of: the immutable base model and the number types with their ranges."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(gt=0.0, le=1.0)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0.0)]


class Section(BaseModel):
    """Base of all sections: immutable, and a key that is not listed is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")
