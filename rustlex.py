"""A small Rust lexer: enough to tell identifiers from strings and comments. Used by names.py and short_names.py."""
import re

TOKEN = re.compile(
    r"""(?P<ws>\s+)
  | (?P<comment>//[^\n]*)
  | (?P<block>/\*)
  | (?P<raw>\b(?:br|cr|r)(?P<hash>\#*)")
  | (?P<str>\b(?:b|c)?"(?:[^"\\]|\\.)*"|"(?:[^"\\]|\\.)*")
  | (?P<char>\bb?'(?:[^'\\\n]|\\(?:x[0-9a-fA-F]{2}|u\{[^}]*\}|.))'|'(?:[^'\\\n]|\\(?:x[0-9a-fA-F]{2}|u\{[^}]*\}|.))')
  | (?P<life>'[A-Za-z_][A-Za-z0-9_]*)
  | (?P<rawid>r\#[A-Za-z_][A-Za-z0-9_]*)
  | (?P<id>[A-Za-z_][A-Za-z0-9_]*)
  | (?P<num>[0-9](?:[0-9A-Za-z_]|\.[0-9])*)
  | (?P<punct>::|->|=>|\.\.=|\.\.|&&|\|\||[^\s])
""",
    re.X | re.S,
)


def lex(text):
    """[(kind, start, end)] without white space; kinds: comment str char life id num punct."""
    out, i, n = [], 0, len(text)
    while i < n:
        m = TOKEN.match(text, i)
        kind = m.lastgroup if m.lastgroup != "hash" else "raw"
        end = m.end()
        if m.group("block"):
            depth, j = 1, end
            while depth and j < n:
                if text.startswith("/*", j):
                    depth, j = depth + 1, j + 2
                elif text.startswith("*/", j):
                    depth, j = depth - 1, j + 2
                else:
                    j += 1
            out.append(("comment", i, j))
            i = j
            continue
        if m.group("raw"):
            close = '"' + m.group("hash")
            j = text.find(close, end)
            j = n if j < 0 else j + len(close)
            out.append(("str", i, j))
            i = j
            continue
        if kind == "rawid":
            kind = "id"
        if kind != "ws":
            out.append((kind, i, end))
        i = end
    return out
