"""Pages need nothing but themselves, escape all that they show, and say in words what a picture shows."""

import re
from html.parser import HTMLParser

import numpy as np

from lingo_ds.monitor.html_report import (
    Bases,
    Code,
    Column,
    Definitions,
    KeyFacts,
    LinkCell,
    Page,
    PageSection,
    PageTable,
    Picture,
    Pictures,
    Ranged,
    Shaded,
    Text,
    Warnings,
    render,
    write_page,
)
from lingo_ds.monitor.report_plots import (
    MAX_POINTS,
    Bar,
    Line,
    draw_calibration,
    draw_confusion,
    draw_curves,
    draw_precision_recall,
    draw_roc,
    draw_scatter,
    png,
)
from tests.unit.monitor.browser import needs_browser, open_page

HOSTILE = (
    """<script>document.title = "owned"</script><img src=http://lab.example/x onerror=alert(1)>"""
    """"'&{{ 7 * 7 }}$x_1$"""
)


def page_with(text: str) -> Page:
    """A page that shows a text in every place that takes one."""
    unit = np.linspace(0, 1, 5)
    pictures = [
        draw_roc([Line(text, unit, unit), Line("_b", unit, unit)]),
        draw_precision_recall([Line(text, unit, unit)], positives=0.3),
        draw_calibration([Bar(0.2, 0.3, 0.1, 0.5, 7)], x_label=text, y_label=text),
        draw_scatter(unit, unit**2, name=text),
        draw_confusion(np.eye(2), [text, "b"]),
        draw_curves([Line(text, [1, 2], [0.5, 0.4])], y_label=text, selected=2),
        png(np.zeros((4, 4, 3), np.uint8)),
    ]
    rows = [
        [text, Ranged("2.5", text), LinkCell(text, "seed%200/report.html")],
        [Bases(text), "10", Shaded(text, 0.5, text)],
    ]
    columns = [Column(text), Column("number", numeric=True), Column("c")]
    blocks = [
        Text(text, strong=True),
        Warnings([text]),
        KeyFacts([(text, text, text)]),
        PageTable(text, columns, rows, sortable=True, note=text),
        Pictures([Picture(text, data, text, text) for data in pictures]),
        Code(text, text),
        Definitions(text, [(text, text)]),
    ]
    sections = [PageSection("all", text, blocks), PageSection("empty", "is left out", [])]
    return Page(text, text, text, sections, text)


class Elements(HTMLParser):
    """Start tags with their attributes, and texts."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)


def require_self_contained(text: str) -> None:
    """Asserts that no element fetches anything, and that every picture has its words."""
    for tag, attributes in Elements(text).tags:
        source = attributes.get("src")
        assert source is None or (tag == "img" and source.startswith("data:image/")), (tag, source)
        assert tag != "img" or attributes.get("alt"), "a picture without words"
        if tag == "link":
            assert attributes == {"rel": "icon", "href": "data:,"}
        assert not [name for name in attributes if name.startswith("on")]
    assert not re.search(r"@import|url\(", text)


def test_every_text_is_escaped_and_nothing_is_fetched():
    text = render(page_with(HOSTILE))
    require_self_contained(text)
    found = Elements(text)
    assert [tag for tag, _ in found.tags].count("script") == 1
    assert sum(one.strip() == HOSTILE for one in found.texts) > 15, "it is shown as it is"
    assert "is left out" not in text
    links = {attributes["href"] for tag, attributes in found.tags if tag == "a"}
    assert links == {"#all", "seed%200/report.html"}


def test_the_picture_of_many_points_stays_small():
    x = np.arange(50_000)
    noise = np.random.default_rng(0).random(50_000)
    assert len(draw_curves([Line("", x, noise)], y_label="loss")) < 100 * MAX_POINTS
    assert len(draw_roc([Line("", x / 50_000, np.sort(noise))])) < 100 * MAX_POINTS
    assert len(draw_scatter(noise, noise, name="value")) < 200_000


def test_pictures_are_the_same_bytes_each_time():
    draw = [draw_curves([Line("a", [1, 2], [0.5, 0.4])], y_label="loss") for _ in range(2)]
    assert draw[0] == draw[1] and b"<text" in draw[0]


@needs_browser
def test_a_browser_opens_it_without_complaint_and_alone(tmp_path):
    write_page(tmp_path / "page.html", page_with(HOSTILE))
    found = open_page(tmp_path / "page.html", tmp_path)
    assert (found.console, found.hosts) == ([], set())
    assert found.html.count('<button type="button">') == 3, "its own script runs"
    assert 'owned"' not in re.search("<title>(.*)</title>", found.html)[1].split("&lt;")[0]


@needs_browser
def test_a_click_sorts_by_numbers_and_another_one_the_other_way(tmp_path):
    rows = [["b", "9"], ["c", ""], ["a", "1,000"], ["d", Ranged("-0.5", "-1 to 0")]]
    table = PageTable("t", [Column("name"), Column("n", numeric=True)], rows, sortable=True)
    text = render(Page("p", "", "", [PageSection("s", "s", [table])], ""))
    unlocked = re.sub("<meta http-equiv=[^>]*>", "", text)  # or its policy would stop the clicks below
    orders = []
    for clicks in (1, 2):
        click = f"<script>{'document.querySelectorAll(`th button`)[1].click();' * clicks}</script>"
        (tmp_path / "page.html").write_text(unlocked.replace("</body>", f"{click}</body>"))
        orders.append(
            re.findall('<th scope="row">(.)</th>', open_page(tmp_path / "page.html", tmp_path).html)
        )
    assert orders == [["d", "b", "a", "c"], ["a", "b", "d", "c"]]


@needs_browser
def test_the_policy_of_a_page_stops_what_got_in(tmp_path):
    """What `open_page` finds where there is something to be found."""
    text = render(Page("p", "", "", [], ""))
    harm = "<img src='http://lab.example/x.png'><script>document.title = 'owned'</script>"
    (tmp_path / "page.html").write_text(text.replace("<main>", f"<main>{harm}"))
    stopped = open_page(tmp_path / "page.html", tmp_path)
    assert len(stopped.console) >= 2 and not stopped.hosts and "<title>p</title>" in stopped.html
    (tmp_path / "page.html").write_text(harm)
    assert open_page(tmp_path / "page.html", tmp_path).hosts == {"lab.example"}
