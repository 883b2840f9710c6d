"""JSON that every reader accepts: a number that is not finite becomes `null`."""

import json
import math
from typing import Any


def strict(value: Any) -> Any:
    """`value` with `None` in place of every float that is infinite or not a number."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): strict(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [strict(one) for one in value]
    return value


def dump(content: Any) -> str:
    """`content` as indented JSON."""
    return json.dumps(strict(content), indent=1, ensure_ascii=False, allow_nan=False, default=str) + "\n"


def line(content: Any) -> str:
    """`content` as JSON on one line."""
    return json.dumps(strict(content), ensure_ascii=False, allow_nan=False, default=str) + "\n"
