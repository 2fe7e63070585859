"""Personal data in texts: found by its form and its check digits, and masked.

What has no form of its own, as names and addresses, is not found.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from ftjax.data.preparation.step import Row, TextStep, Verdict
from ftjax.errors import UserError, nearest, require

Span = tuple[int, int]
A = re.ASCII  # Chinese characters may stand right beside a number
EMAIL = re.compile(r"(?<![\w.%+-])[\w.%+-]+@(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,}(?![\w-])", A)
IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}(?!\w)", A)
CHINESE_ID = re.compile(r"(?<!\w)\d{17}[\dXx](?!\w)", A)
CHINESE_MOBILE = re.compile(r"(?<!\d)(?:\+?86[ -]?)?1[3-9]\d(?:[ -]?\d{4}){2}(?!\d)", A)
GROUPS = re.compile(r"(?<![\w.])\d+(?:[ -]\d+)*(?!\w)", A)  # of digits, as cards have them
IPV4 = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\d)", A)
IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f:]*:[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*(?<![:.](?=\w))(?!\w)", A)


def _emails(text: str) -> Iterator[Span]:
    return (match.span() for match in EMAIL.finditer(text)) if "@" in text else iter(())


def _ibans(text: str) -> Iterator[Span]:
    from stdnum import iban

    for match in IBAN.finditer(text):
        # Words in capitals after it are taken along: the longest part that is one is meant.
        for end in range(match.end(), match.start() + 14, -1):
            if text[end - 1] != " " and iban.is_valid(text[match.start() : end]):
                yield match.start(), end
                break


def _chinese_ids(text: str) -> Iterator[Span]:
    from stdnum.cn import ric

    return (m.span() for m in CHINESE_ID.finditer(text) if ric.is_valid(m[0].upper()))


def _cards(text: str) -> Iterator[Span]:
    from stdnum import luhn

    for run in GROUPS.finditer(text):
        groups = [match.span() for match in re.finditer(r"\d+", run[0])]
        start = 0
        while start < len(groups):  # another number may stand before it or after it
            for end in range(len(groups), start, -1):
                digits = "".join(run[0][a:b] for a, b in groups[start:end])
                if 13 <= len(digits) <= 19 and digits[0] in "23456" and luhn.is_valid(digits):
                    yield (
                        run.start() + groups[start][0],
                        run.start() + groups[end - 1][1],
                    )
                    start = end - 1
                    break
            start += 1


def _addresses(text: str) -> Iterator[Span]:
    for pattern in (IPV4, IPV6):
        for match in pattern.finditer(text):
            try:
                ipaddress.ip_address(match[0])
            except ValueError:
                continue
            if any(character.isdigit() for character in match[0]):
                yield match.span()


FINDERS: dict[str, Callable[[str], Iterator[Span]]] = {
    "email": _emails,
    "iban": _ibans,
    "chinese_id": _chinese_ids,
    "card": _cards,
    "ip": _addresses,
}
DOT = "•"
KINDS = (*FINDERS, "phone")  # in this order: a card's digits are no phone number


@dataclass(frozen=True)
class MaskPersonal(TextStep):
    """Puts [EMAIL], [IBAN], [CHINESE_ID], [CARD], [IP] and [PHONE] in place of what it finds.

    Cards pass Luhn's check, IBANs that of ISO 13616 and Chinese IDs that of GB 11643, by
    python-stdnum; phone numbers are those that libphonenumber finds valid, and grouped as usual.

    Attributes:
        kinds: what is masked; empty: all.
        regions: whose phone numbers are known without a country's code, as ISO 3166 has them;
            Chinese mobile numbers always are.
    """

    kinds: tuple[str, ...] = ()
    regions: tuple[str, ...] = ("US", "CN")

    rewrites: ClassVar = "texts"

    def __post_init__(self) -> None:
        import phonenumbers

        super().__post_init__()
        for kind in self.kinds:
            require(kind in KINDS, f"kinds: {kind!r} is not known{nearest(kind, KINDS)}")
        for region in self.regions:
            if region not in phonenumbers.SUPPORTED_REGIONS:
                raise UserError(f"regions: {region!r} is no country's code, such as 'GB'")

    def judge(self, row: Row) -> Verdict:
        kinds: list[str] = []
        verdict = self.rewrite(row, lambda text: self._masked(text, kinds))
        return verdict._replace(reasons=(*verdict.reasons, *kinds))

    def concealed(self, text: str) -> str:
        """A text with dots for what is masked: for the report, which is not to give it away."""
        return self._masked(text, [], lambda kind, secret: DOT * len(secret))

    def _masked(
        self,
        text: str,
        kinds: list[str],
        mask: Callable[[str, str], str] = lambda kind, _: f"[{kind.upper()}]",
    ) -> str:
        """The text with masks; its kinds are added to `kinds`."""
        for kind in (kind for kind in KINDS if kind in (self.kinds or KINDS)):
            spans = list(FINDERS[kind](text) if kind != "phone" else self._phones(text))
            for start, end in reversed(spans):
                text = text[:start] + mask(kind, text[start:end]) + text[end:]
            kinds += [kind] * len(spans)
        return text

    def _phones(self, text: str) -> list[Span]:
        import phonenumbers

        if sum(map(str.isdigit, text)) < 7:
            return []
        spans = [match.span() for match in CHINESE_MOBILE.finditer(text)]
        strict = phonenumbers.Leniency.STRICT_GROUPING  # no years from 1685 to 1745, no sums
        for region in self.regions or (None,):
            matches = phonenumbers.PhoneNumberMatcher(text, region, strict)
            spans += [(match.start, match.end) for match in matches]
        return _apart(spans)


def _apart(spans: list[Span]) -> list[Span]:
    """Spans in order, of those that overlap the first and longest."""
    disjoint: list[Span] = []
    for start, end in sorted(spans, key=lambda span: (span[0], -span[1])):
        if not disjoint or start >= disjoint[-1][1]:
            disjoint.append((start, end))
    return disjoint
