"""What every configuration section is made of: the immutable base model and the number types with their ranges."""

from __future__ import annotations

from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

Fraction = Annotated[float, Field(gt=0.0, le=1.0)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Weight = Annotated[float, Field(ge=0.0, le=1e9)]
Rate = Annotated[float, Field(gt=0.0, le=1e9)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
CountOrZero = Annotated[int, Field(ge=0, le=2**31 - 1)]
"""Below 2**31, which every library and Kubernetes can hold. What costs memory or time by its size has a lower limit at its field."""

URL = r"^https?://(\[[0-9A-Fa-f:.]+\]|[^\s/:@?#\[\]]+)(:[0-9]{1,5})?([/?#]\S*)?$"
Url = Annotated[str, Field(pattern=URL)]
"""Without a user and a password: a URL is stored beside the artifacts, stands in a ConfigMap, and is named in messages."""


class Section(BaseModel):
    """Base of all sections: immutable; a key that is not listed, a number that is not finite, and a boolean for a number are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Python takes true for 1; in a file it is a slip."""
        if any(isinstance(item, bool) for item in (value if isinstance(value, list) else [value])):
            types = _types_in(cls.model_fields[str(info.field_name)].annotation)
            if (int in types or float in types) and bool not in types:
                raise PydanticCustomError("number_expected", "input should be a number, not true or false")
        return value


def _types_in(annotation: Any) -> list[Any]:
    """The plain types that a field's annotation is made of."""
    parts = get_args(annotation)
    return [kind for part in parts for kind in _types_in(part)] if parts else [annotation]
