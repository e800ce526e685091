"""Convert MathML to a line of text with TeX's signs, such as `k^(−x)/2`."""

from __future__ import annotations

from lxml import etree  # pyright: ignore[reportAttributeAccessIssue] (compiled, without stubs)

MATH = "{http://www.w3.org/1998/Math/MathML}math"
UNREAD = ("annotation", "annotation-xml", "mspace", "mphantom", "none", "mprescripts", "maligngroup", "malignmark")
INVISIBLE = dict.fromkeys(map(ord, "\u2061\u2062\u2063\u2064"))  # "applied to", "times", "and", "plus"
# Elements whose children are separated by signs: name -> signs before the second and third child.
BETWEEN = {
    "msup": "^", "msub": "_", "msubsup": "_^", "mover": "^", "munder": "_", "munderover": "_^", "mfrac": "/",
    "mroot": "^",
}  # fmt: skip


def math_text(math: etree._Element) -> str:
    """The text of a `math` element, or of one inside it."""
    return " ".join(_text(math).split())


def _text(element: etree._Element) -> str:
    name = element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""
    if name in UNREAD or not name:
        return ""
    if not len(element):
        return " ".join((element.text or "").translate(INVISIBLE).split())
    inner = [_text(child) for child in element]
    if name in BETWEEN and len(inner) == len(BETWEEN[name]) + 1:
        first, *others = (_grouped(text) for text in inner)
        if name == "mroot":
            return f"√{first}^(1/{others[0]})"
        signs = (
            "" if name.startswith(("mo", "mu")) and len(text) == 1 and not text.isalnum() else sign
            for sign, text in zip(BETWEEN[name], others, strict=True)
        )
        return first + "".join(sign + text for sign, text in zip(signs, others, strict=True))
    if name == "mfenced":
        begin, end = element.get("open", "("), element.get("close", ")")
        return begin + (element.get("separators", ",").strip()[:1] or "").join(inner) + end
    joined = _joined(inner, name in ("mtr", "mtable", "mlabeledtr"))
    return f"√{_grouped(joined)}" if name == "msqrt" else joined


def _grouped(text: str) -> str:
    """Put a text in brackets if it is more than one number, name or sign."""
    return text if len(text) < 2 or text.lstrip("+-\N{MINUS SIGN}").isalnum() else f"({text})"


def _joined(texts: list[str], apart: bool) -> str:
    """Join texts side by side, as they are printed: `2x`, but `sin x` and `1 2`."""
    line = ""
    for text in filter(None, texts):
        long = any(len(part) == 2 and part.isalpha() for part in (line[-2:], text[:2]))
        names = long and line[-1:].isalpha() and text[:1].isalpha()
        if line and (apart or names or (line[-1:].isdecimal() and text[:1].isdecimal())):
            line += " "
        line += text
    return line
