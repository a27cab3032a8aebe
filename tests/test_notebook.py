"""Results in notebooks: HTML that stands alone, data frames, progress on one line."""

import io
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest

import crashsim
from crashsim import BitFlip, NeuronCrash, ProgressLine
from crashsim.notebook import fragment
from crashsim.results.comparison import compare


@pytest.fixture
def net(make_net):
    return make_net((4, 6, 3))


@pytest.fixture
def every(net, randn):
    x = randn(30, 4)
    data = x, net(x).argmax(1)
    options = {"samples": 200, "seed": 1}
    score = crashsim.score(net, data, NeuronCrash(0.1), **options)
    return {
        "score": score,
        "curve": crashsim.sweep(net, data, NeuronCrash(0.1), rates=[0.05, 0.2], chips=40),
        "map": crashsim.vulnerability(
            net, x, BitFlip(1e-6, format="float32"), "weights", by=("layer", "bit"), evaluations=30
        ),
        "comparison": compare({"one": [score], "other": [score]}),
    }


class Checked(HTMLParser):
    """Reads HTML, and keeps its words; fails on what runs or loads, and on tags left open."""

    def __init__(self, text):
        super().__init__()
        self.open, self.words = [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        assert tag not in ("script", "link", "iframe", "img", "object")
        for name, value in attributes:
            assert not name.startswith("on")
            loads = name in ("src", "href", "xlink:href") and not value.startswith("#")
            assert not loads, (tag, value)
        self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_each_shows_itself(every):
    for name, result in every.items():
        html = result._repr_html_()
        assert len(html) < 60_000, name
        words = " ".join(Checked(html).words)
        assert "crashsim" in words
    shown = " ".join(Checked(every["score"]._repr_html_()).words)
    mean = every["score"].chips["metrics"][0]["mean"]["value"]
    assert f"{100 * mean:.2f}".rstrip("0").rstrip(".") in shown
    assert "<svg" in every["curve"]._repr_html_()


def test_a_plan_shows_itself(make_net, randn):
    net, x = make_net((4, 6, 3)), randn(40, 4)
    plan = crashsim.protect(
        net, (x, net(x).argmax(1)), {"weights": BitFlip(1e-3, format="int8")}, budget=0.1, chips=40
    )
    assert "accuracy" in " ".join(Checked(plan._repr_html_()).words)


def test_names_are_text():
    names = ("<script>alert(1)</script>", "a&b", "'>\"", "\x1b[2J")
    html = fragment(names[0], names[1], names, [names], names)
    words = "".join(Checked(html).words)
    assert "<script>alert(1)</script>" in words
    assert "\x1b" not in html


def test_data_frames_hold_what_the_results_hold(every):
    pytest.importorskip("pandas")
    frame = every["score"].to_dataframe()
    assert len(frame) == len(every["score"].estimates)
    one = every["score"].find("monte-carlo", "variance")
    row = frame[(frame.method == "monte-carlo") & (frame.quantity == "variance")
                & (frame.input == "all") & (frame.output == "all")]  # fmt: skip
    assert row.value.item() == one.value
    assert row.low.item() == one.low
    frame = every["curve"].to_dataframe()
    assert list(frame.rate) == [0.0, 0.05, 0.2]
    assert list(frame.value[1:]) == [p["value"] for p in every["curve"].points]
    frame = every["map"].to_dataframe()
    assert len(frame) == len(every["map"].rows)
    assert frame.groupby("layer").size().tolist() == [32, 32]
    frame = every["comparison"].to_dataframe()
    measure = every["comparison"].contenders[0].measures["variance"]
    assert measure.value in set(frame.value[frame.measure == "variance"])


def test_a_curve_is_drawn_into_axes_of_ones_own(every):
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    assert every["curve"].plot(axes) is axes
    axes.set_title("mine")
    assert axes.lines


def test_progress_is_a_line(monkeypatch, net, randn):
    told = io.StringIO()
    monkeypatch.setattr(sys, "stderr", told)
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    crashsim.score(net, randn(4, 4), NeuronCrash(0.1), samples=200, progress=ProgressLine(every=0))
    lines = told.getvalue().replace("\r", "\n").split("\n")
    assert any("100%" in line for line in lines)


def test_progress_in_a_notebook_is_one_display(monkeypatch):
    shown = []

    class Handle:
        def update(self, html):
            shown.append(html)

    def display(html, display_id):
        assert display_id is True
        shown.append(html)
        return Handle()

    ipython = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=object()))
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(HTML=str, display=display))
    line = ProgressLine(every=0)
    for done in range(3):
        line("<samples>", done, 2)
    assert len(shown) == 3
    assert "&lt;samples&gt;: 100%" in shown[-1]
