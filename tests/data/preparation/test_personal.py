"""Masks on numbers that are well known, or whose check digits are worked by hand."""

import pytest

from ftjax.data.preparation.pipeline import prepare
from tests.data.preparation.rows import applied, split, texts_of
from tests.data.preparation.test_preparation import settings


def masked(text, **options):
    found, counts = applied({"step": "mask_personal", **options}, train=[text])
    return texts_of(found["train"])[0], counts["train"]["reasons"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Write to jane.doe+x@mail.example.co.uk.", "Write to [EMAIL]."),
        ("邮箱zhang@example.cn，谢谢", "邮箱[EMAIL]，谢谢"),
        ("at 9 @ home, a@b", "at 9 @ home, a@b"),
        # ISO 13616's own example; then with one digit changed.
        ("IBAN GB82 WEST 1234 5698 7654 32 PLEASE", "IBAN [IBAN] PLEASE"),
        ("IBAN DE89370400440532013000.", "IBAN [IBAN]."),
        ("IBAN DE89370400440532013001.", "IBAN DE89370400440532013001."),
        # Card numbers for tests, of Visa and American Express; with one digit changed.
        ("card 4111 1111 1111 1111 12/30", "card [CARD] 12/30"),
        ("card 4111-1111-1111-1111, 3782 822463 10005", "card [CARD], [CARD]"),
        ("no 12 4111111111111111 and 7", "no 12 [CARD] and 7"),
        ("card 4111 1111 1111 1112", "card 4111 1111 1111 1112"),
        # GB 11643's example: Σ digit · weight = 167 = 2 mod 11, whose check character is X.
        ("身份证11010519491231002X号", "身份证[CHINESE_ID]号"),
        ("身份证110105194912310021号", "身份证110105194912310021号"),
        ("手机13812345678。", "手机[PHONE]。"),
        ("+86 138-1234-5678 or 138 1234 5678", "[PHONE] or [PHONE]"),
        ("call (650) 253-0000 now", "call [PHONE] now"),
        ("from 1682 -1745, 1000 - 200 - 400", "from 1682 -1745, 1000 - 200 - 400"),
        ("call +44 20 7946 0958", "call [PHONE]"),
        ("0.5 of 10,000 in 1998, 12:30", "0.5 of 10,000 in 1998, 12:30"),
        (
            "host 192.168.0.1:80 or 2001:db8::1, not 256.1.1.1",
            "host [IP]:80 or [IP], not 256.1.1.1",
        ),
        ("地址10.0.0.1。 at 12:30:45 std::min", "地址[IP]。 at 12:30:45 std::min"),
    ],
)
def test_what_is_masked(text, wanted):
    assert masked(text)[0] == wanted


def test_kinds_regions_and_counts():
    text = "a@b.org, c@d.org, 020 7946 0958"
    assert masked(text, regions=["US"]) == ("[EMAIL], [EMAIL], 020 7946 0958", {"email": 2})
    assert masked(text, regions=["GB"])[1] == {"email": 2, "phone": 1}
    assert masked(text, regions=["GB"], kinds=["phone"])[0] == "a@b.org, c@d.org, [PHONE]"
    assert masked("12812345678 +1 281 234 5678", regions=[])[0] == "12812345678 [PHONE]"


def test_the_report_does_not_give_it_away():
    rows = ["  call 13812345678  ", "call 13812345678", "write to a@b.org"]
    _, report = prepare(
        {"train": split(rows)}, settings("drop_duplicates", "mask_personal", splits={
            "train": 0.0, "validation": 0.0, "test": 0.0
        })
    )  # fmt: skip
    assert "13812345678" not in str(report) and "a@b" not in str(report)
    row = next(row for row in report if row["step"] == "mask_personal")
    assert row["changes"][1] == {
        "row": 3,
        "before": "write to •••••••",
        "after": "write to [EMAIL]",
    }
