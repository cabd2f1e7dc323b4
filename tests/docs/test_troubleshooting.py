"""Tests that the troubleshooting page quotes residuald's exit codes, dead letter reasons and messages correctly."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/src/troubleshooting.md").read_text()
CODE = "\n".join(path.read_text() for path in sorted((ROOT / "src").rglob("*.rs")))
# Message strings with continued lines joined and placeholders replaced by "…".
PRINTED = re.sub(r"\{[^{}]*\}", "…", re.sub(r"\\\n\s*", "", CODE))


def section(heading):
    return re.split(r"\n#{2,3} ", PAGE.split(f" {heading}\n", 1)[1])[0]


def first_cells(heading):
    return re.findall(r"^\| (.+?) \|", section(heading), re.M)


def test_every_exit_code_has_its_line():
    sysexits = CODE.split("// Exit codes from sysexits.h.\n", 1)[1].split("\n\n", 1)[0]
    codes = re.findall(r"const [A-Z]+: u8 = (\d+);", sysexits)
    assert len(codes) == 5
    assert set(codes) <= set(first_cells("Exit codes"))


def test_every_reason_of_a_dead_letter_has_its_line():
    (arms,) = re.findall(r"impl Reason \{.*?fn as_str\(self\).*?match self \{(.*?)\n        \}", CODE, re.S)
    reasons = set(re.findall(r'=> "(\w+)"', arms))
    assert len(reasons) >= 8
    assert {cell.strip("`") for cell in first_cells("Dead letter reasons") if re.fullmatch(r"`\w+`", cell)} >= reasons


def test_every_quoted_message_is_one_of_ours():
    headings = "It ends with 69", "A bundle is refused"
    quotes = [quote for heading in headings for cell in first_cells(heading) for quote in re.findall("`([^`]+)`", cell)]
    quotes += re.findall(r"^`([^`]+)`", section("A threshold is refused"), re.M)
    quotes += ["ONNX Runtime runs most of the graph elsewhere", "is not available: "]
    parts = [part.strip() for quote in quotes for part in quote.split("…")]
    unknown = [part for part in parts if part not in PRINTED and part.replace('"', '\\"') not in PRINTED]
    assert unknown == []
    assert len(quotes) > 12
