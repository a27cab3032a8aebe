"""Text from elsewhere (names of modules, files, a saved score) as it may be shown."""

from __future__ import annotations

import re

# Control characters, which a terminal obeys; marks that turn the direction of what follows or
# cannot be seen at all; line ends other than "\n"; and halves of characters, which no terminal can
# write (Python has them for bytes of a file name that are not UTF-8).
_UNSEEN = (
    r"\x00-\x1f\x7f-\x9f"
    r"\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    r"\U000e0000-\U000e007f\ud800-\udfff"
)
_ANYWHERE = re.compile(f"[{_UNSEEN}]")
_WITHIN_LINES = re.compile(f"(?!\n)[{_UNSEEN}]")


def visible(text: str, *, lines: bool = False) -> str:
    r"""The text with escapes for what cannot be seen: ``\x1b``, ``\u202e``, ``\udc80``, ``\n``.

    Args:
        text: any.
        lines: keep line ends.
    """
    return (_WITHIN_LINES if lines else _ANYWHERE).sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    if found[0] in "\n\r\t":
        return repr(found[0])[1:-1]
    code = ord(found[0])
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
