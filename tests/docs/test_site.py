"""The site as a person sees it, where it has been built: `make docs` builds it and runs this."""

import re
from pathlib import Path

import pytest
from browser import CHROMIUM, opened

SITE = Path(__file__).parents[2] / "docs" / "_build" / "html"
PAGES = sorted(
    page
    for page in SITE.rglob("*.html")
    if not page.is_relative_to(SITE / "reference" / "generated")
    or page.stem in {"crashsim", "command_line", "crashsim.scoring", "crashsim_theory.laws"}
)
built = pytest.mark.skipif(not PAGES, reason="no site here; `make docs` builds it")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with opened(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@built
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(SITE)))
def test_a_page_at_both_widths(page, browser):
    for width in (390, 1280):
        seen = browser.look(page, width)
        assert seen.errors == []
        assert seen.requests == [], "a request leaves the page"
        assert seen.hidden_pictures == []
        assert seen.overflowing == []


@built
def test_every_link_within_the_site_leads_somewhere():
    broken = []
    for page in SITE.rglob("*.html"):
        for link in re.findall(r'(?:href|src)="([^"#?:]+)(?:[#?][^"]*)?"', page.read_text()):
            if not (page.parent / link).exists():
                broken.append((str(page.relative_to(SITE)), link))
    assert broken == []


@built
def test_every_public_name_is_in_the_reference():
    import crashsim_hardware
    import crashsim_theory

    import crashsim

    pages = "".join(page.read_text() for page in (SITE / "reference" / "generated").glob("*.html"))
    for package in (crashsim, crashsim_theory, crashsim_hardware):
        for name in package.__all__:
            assert f'id="{package.__name__}.{name}"' in pages, name
