"""Text on its way out: names that strangers chose, for a person, a spreadsheet or a program to read safely.

Names of files, classes and columns, and what a model file says, may hold anything. Inside they stay as they are; every
place where they leave uses one of these.
"""

import json
import math
import re
from typing import Any

# Not to be seen as themselves: control characters, separators of lines, marks of direction and other invisible ones,
# lone surrogates (bytes of a file name that are no UTF-8). The joiners U+200C and U+200D belong to scripts and emoji.
_HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
                     "\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]")
_FORMULA = re.compile("[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")  # what OWASP warns of, "CSV injection"
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~&$!@])")


def printable(text: str, lines: bool = False) -> str:
    """Text with what controls a terminal or hides from the eye shown as escapes: `\\x1b`, `\\n`, `\\u202e`, `\\udcff`.

    `lines`: ends of lines and tabs stay, as in a text that is no name.
    """
    return _HIDDEN.sub(lambda found: found[0] if lines and found[0] in "\n\t"
                       else found[0].encode("unicode_escape").decode(), text)


def is_utf8(text: str) -> bool:
    """Whether text can be written down; a file name of other bytes cannot, Python keeps those as lone surrogates."""
    try:
        text.encode()
        return True
    except UnicodeEncodeError:
        return False


def markdown_text(text: str) -> str:
    """A name in Markdown, on one line of a table."""
    return _MARKDOWN.sub(r"\\\1", printable(text))


def guarded(cell: str) -> str:
    """A cell of a .csv: behind a quote ' where a spreadsheet would take it for a formula. `unguarded` takes it off."""
    return f"'{cell}" if _is_formula(cell.lstrip("'")) else cell


def unguarded(cell: str) -> str:
    """The cell of which `guarded` made this."""
    return cell[1:] if cell.startswith("'") and _is_formula(cell.lstrip("'")) else cell


def _is_formula(cell: str) -> bool:
    if not _FORMULA.match(cell):
        return False
    try:
        float(cell)
    except ValueError:
        return True
    return cell[0] not in "+-" or "_" in cell  # -5 is a number, -5_0 is one for Python alone


def to_json(value: Any, indent: int | None = None, ascii: bool = True) -> str:
    """JSON that any parser takes: a number that is not finite is null, and the text can be encoded as UTF-8."""
    try:
        text = json.dumps(value, indent=indent, ensure_ascii=ascii, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(value), indent=indent, ensure_ascii=ascii, allow_nan=False)
    return text.encode("utf-8", "backslashreplace").decode()  # a lone surrogate becomes its escape, which JSON has


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
