"""Dates as documents give them, made ISO 8601."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from email.utils import parsedate_to_datetime
from typing import Any

_ISO = re.compile(r"\d{4}(-\d\d(-\d\d([T ][\d:.,]*\s?(Z|[+-]\d\d:?\d\d)?)?)?)?")


def iso_date(value: Any) -> str | None:
    """ISO 8601 of dates, ISO texts, mail and HTTP dates, years, and seconds or milliseconds since 1970. None: it is none of these."""
    try:
        if isinstance(value, date):
            return value.isoformat()
        if isinstance(value, str):
            text = value[:40].strip()
            return text if _ISO.fullmatch(text) else parsedate_to_datetime(text).isoformat() if "," in text or ":" in text else None
        if isinstance(value, int | float) and not isinstance(value, bool):
            return _of_number(value)
    except (ValueError, OverflowError, OSError):
        pass
    return None


def _of_number(value: float) -> str | None:
    if 1000 <= value < 2200 and value == int(value):
        return str(int(value))
    seconds = value / 1000 if value > 1e11 else value
    return datetime.fromtimestamp(seconds, UTC).isoformat() if seconds > 1e8 else None  # 1973; smaller numbers count something else
