"""A preparation step: texts in small letters."""

from dataclasses import dataclass

from ftjax.data.preparation.step import Row, TextStep, Verdict
from ftjax.options import Natural


@dataclass(frozen=True)
class Whisper(TextStep):
    """Writes texts in small letters.

    Attributes:
        loud: characters at the start that stay as they are.
    """

    loud: Natural = 0

    def judge(self, row: Row) -> Verdict:
        return self.rewrite(row, lambda text: text[: self.loud] + text[self.loud :].lower())
