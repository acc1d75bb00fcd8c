"""The page is well formed, complete in itself, the same for the same results, and claims no more than was found."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser

import pytest

from cactus_edge.report import html
from cactus_edge.report.results import Agreement, BuildResults, Score, Spread

VOID = {"meta", "link", "br"}


class Page(HTMLParser):
    """Checks that tags balance and keeps what the tests ask about."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.faults: list[str] = []
        self.feed(text)
        self.close()
        self.faults += [f"<{tag}> is never closed" for tag in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> at {self.getpos()} closes nothing")

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))


@pytest.fixture(scope="module")
def cache() -> dict[str, str]:
    return {}


@pytest.fixture
def page(results: BuildResults, cache: dict[str, str]) -> str:
    if "page" not in cache:
        cache["page"] = html.render(results)
    return cache["page"]


def test_tags_balance_and_ids_are_unique(page: str) -> None:
    parsed = Page(page)
    assert parsed.faults == []
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in parsed.tags:
        for name, value in attributes.items():
            for target in re.findall(r"(?:^|url\()#([\w.-]+)", value or "") if name not in ("style", "content") else []:
                assert target in ids, f"{name}={value} points nowhere"


def test_the_balance_check_sees_a_planted_fault(page: str) -> None:
    assert Page(page.replace("</table>", "", 1)).faults


def test_what_is_certified_comes_first(page: str) -> None:
    text = Page(page).text
    opening = text[: text.index("Key figures")]
    assert opening.index("What is certified") < opening.index("What is not certified")
    for promise in (
        "For 317 of the 360 inputs listed in",
        "1/16 (= 0.0625)",
        "within the sensor's domain [0, 1]",
        "Strict win of the labelled class: a tie counts as not certified",
        "Runtime profile tflm",
        "no probability for inputs that are not on it",
        "The sensor and the preprocessing (pixel counts 0 to 16 divided by 16) are outside",
        "Only the profile named here is covered",
        "The other 43 listed inputs",
    ):
        assert promise in opening, promise


def test_nothing_is_loaded_from_elsewhere(page: str) -> None:
    for tag, attributes in Page(page).tags:
        assert tag not in {"script", "img", "iframe", "object", "embed", "base", "form", "image"}
        for name, value in attributes.items():
            assert not name.startswith("on"), f"<{tag}> has a handler {name}"
            if name in {"src", "href", "xlink:href", "srcset", "action", "data", "poster"}:
                assert value is not None and value.startswith(("#", "data:,")), f"<{tag} {name}={value}>"
    assert "@import" not in page
    assert set(re.findall(r"url\((.)", page)) <= {"#"}
    assert set(re.findall(r"https?://[^\"'\s<]+", page)) == {"http://www.w3.org/2000/svg"}


def test_same_results_same_bytes(page: str, results: BuildResults) -> None:
    assert html.render(results) == page
    assert html.render(BuildResults.from_json(results.to_json())) == page


def test_a_users_matplotlib_settings_do_not_change_the_page(page: str, results: BuildResults) -> None:
    import matplotlib

    with matplotlib.rc_context({"lines.linewidth": 9, "svg.fonttype": "path", "axes.facecolor": "red"}):
        assert html.render(results) == page


def test_plots_are_described_and_carry_no_fixed_colours(page: str) -> None:
    drawings = re.findall(r"<svg.*?</svg>", page, flags=re.S)
    assert len(drawings) == 2
    for drawing in drawings:
        assert 'role="img"' in drawing and "<title" in drawing and "<desc" in drawing
        assert "<text" in drawing and "<metadata" not in drawing
        assert not re.findall(r"#[0-9a-f]{6}\b", drawing)
        assert "var(--first)" in drawing and "var(--second)" in drawing and "stroke-dasharray" in drawing


def test_every_header_cell_says_what_it_heads(page: str) -> None:
    headers = [attributes for tag, attributes in Page(page).tags if tag == "th"]
    assert headers and all(attributes.get("scope") in ("row", "col") for attributes in headers)


def test_without_a_device_it_says_not_measured_and_how_to(results: BuildResults) -> None:
    page = html.render(dataclasses.replace(results, device=None, target="nucleo-l4r5zi"))
    text = Page(page).text
    section = text[text.index("Device", text.index("Agreement with real")) :]
    assert section.startswith("Device not measured: nothing of this build was executed on nucleo-l4r5zi")
    assert "cactus-edge bench model.tflite --target nucleo-l4r5zi" in section
    assert "The device. This build was not run on one" in text
    assert "--firmware" not in text


def test_an_emulator_counts_instructions_and_has_no_latency(page: str, results: BuildResults) -> None:
    text = Page(page).text
    assert "neither a latency nor cycles" in text and "µs" not in text
    assert results.device is not None
    board = dataclasses.replace(results.device, emulated=False, instructions=None, latency_us=Spread(5321.0, 4.0, 100))
    real = Page(html.render(dataclasses.replace(results, device=board))).text
    assert "5321 µs" in real and "emulator" not in real


def test_hostile_names_are_text(results: BuildResults) -> None:
    attack = '<script>alert(1)</script><img src="http://x/">&"\' {{ 7*7 }} </title></style>'
    hostile = dataclasses.replace(
        results,
        recipe=attack,
        command=attack,
        machine=attack,
        target=attack,
        device=None,
        data=dataclasses.replace(results.data, name=attack, labels=(attack, "ok"), preprocessing=attack),
        layers=(dataclasses.replace(results.layers[0], name=attack),),
        agreement=(Agreement(attack, 1, 1),),
    )
    parsed = Page(html.render(hostile))
    assert parsed.faults == []
    assert not {"script", "img"} & {tag for tag, _ in parsed.tags}
    assert attack in parsed.text


def test_contradictions_come_before_everything(page: str, results: BuildResults) -> None:
    assert "Do not rely" not in page and html.problems(results) == []
    assert results.device is not None
    contradictions = {
        "can overflow": {"layers": (dataclasses.replace(results.layers[0], accumulator=2**31),)},
        "differs from the interpreter on 3 of 10": {"agreement": (Agreement("TFLM", 10, 3),)},
        "device differs from the interpreter on 1 inputs.": {"device": dataclasses.replace(results.device, equal=99)},
        "on 1 inputs: input 3, op 0 Conv2d": {
            "device": dataclasses.replace(results.device, equal=99, first_difference="input 3, op 0 Conv2d")
        },
        "reports another model": {"device": dataclasses.replace(results.device, blob_sha256="f" * 16)},
    }
    for message, change in contradictions.items():
        text = Page(html.render(dataclasses.replace(results, **change))).text
        assert message in text
        assert text.index("Do not rely on this build") < text.index("What the certificate says")
    overflow = html.render(dataclasses.replace(results, layers=contradictions["can overflow"]["layers"]))
    assert "No 32-bit accumulator can overflow" not in overflow


def test_what_was_not_measured_is_said(results: BuildResults) -> None:
    bare = dataclasses.replace(
        results,
        curve=(),
        agreement=(),
        device=None,
        steps=(),
        files=(),
        training=dataclasses.replace(results.training, epochs=()),
        accuracy=dataclasses.replace(
            results.accuracy, int8_attacked=None, float_certified=None, float_clean=None, attack=""
        ),
    )
    parsed = Page(html.render(bare))
    assert parsed.faults == []
    assert parsed.text.count("not measured") >= 8
    assert "svg" not in {tag for tag, _ in parsed.tags}


def test_parts_add_up(results: BuildResults) -> None:
    assert [(part.name, part.count) for part in html.parts(results)] == [
        ("certified", 317),
        ("undecided", 12),
        ("turned", 26),
        ("wrong", 5),
    ]
    blind = dataclasses.replace(results, accuracy=dataclasses.replace(results.accuracy, int8_attacked=None))
    assert [part.count for part in html.parts(blind)] == [317, 38, 5]


def test_no_percentage_is_rounded_up() -> None:
    assert html.score(Score(99_999, 100_000)) == "99.99 %"
    assert html.score(Score(1, 1)) == "100.00 %"
    assert all(html.percent(k / 10_000) == html.score(Score(k, 10_000)) for k in range(10_001))


def test_verify_command_is_one_shell_line(results: BuildResults) -> None:
    odd = dataclasses.replace(results, model=dataclasses.replace(results.model, path="my model.tflite"), device=None)
    assert html.verify_command(odd) == "cactus-edge verify certificate.json --model 'my model.tflite' --data test.npz"
