"""Text from outside as the tables can hold it: captions, cells and names are checked where they come in.

In:  bytes of a text file, text with half characters, cells of any type, file names that are not UTF-8.
Out: `str` that encodes as UTF-8. What is mended and what is refused is stated at each function.
"""

from __future__ import annotations

import codecs
import datetime
import json
import math
import re
from typing import Any

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_HALF = re.compile("[\ud800-\udfff\0]")


class TextError(ValueError):
    """A value that is no text; the message says what it is, and the fix."""


def decoded(data: bytes) -> str:
    """Return text as its byte order mark says (UTF-8, UTF-16, UTF-32), else as UTF-8. Raises TextError for any other encoding."""
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        found = f"byte 0x{data[error.start]:02x} in line {line}" if error.start < len(data) else "the end"
        raise TextError(f"not {encoding.removesuffix('-sig').upper()}: {found}; save it as UTF-8") from error


def mended(text: str) -> str:
    """Return text with U+FFFD in the place of each half of a surrogate pair and each NUL, which no table can hold."""
    return _HALF.sub("\ufffd", text)


def storable(name: str) -> bool:
    """Whether a file name can stand in a table: it is UTF-8, and not the bytes of another encoding."""
    return _HALF.search(name) is None


def readable(name: str) -> str:
    r"""Return a name that is not UTF-8 in a form that can be stored and read: each of its odd bytes as \xNN."""
    return "".join(f"\\x{ord(c) - 0xDC00:02x}" if 0xDC80 <= ord(c) <= 0xDCFF else c for c in name).translate(_ESCAPES)


_ESCAPES = {code: f"\\u{code:04x}" for code in range(0xD800, 0xE000)} | {0: "\\x00"}


def cell(value: Any) -> str:
    """Return a table's cell as text; empty for none and NaN. Bytes are UTF-8. Raises TextError for a list or an object."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bytes):
        return mended(decoded(value))
    if isinstance(value, list | tuple):
        raise TextError("holds a list; write one text: join its entries, or choose one")
    if isinstance(value, dict):
        raise TextError("holds an object; write one text")
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return mended(str(value))


def carried(value: Any) -> str:
    """Return a cell of a carried column as text: as `cell`, and lists and objects as JSON."""
    if isinstance(value, list | tuple | dict):
        return mended(json.dumps(value, ensure_ascii=False, default=str))
    return cell(value)
