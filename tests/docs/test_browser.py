"""What the browser tells of pages that are wrong in a known way, and of one that is right."""

import base64

import pytest
from browser import CHROMIUM, opened

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
DOT = base64.b64encode(
    b"GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff,\x00\x00\x00\x00\x01\x00\x01\x00\x00"
    b"\x02\x02D\x01\x00;"
).decode()


@pytest.fixture(scope="module")
def look(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    with opened(folder / "profile") as browser:

        def of(body, width=390):
            page = folder / "page.html"
            page.write_text(f"<!doctype html><html><body>{body}</body></html>")
            return browser.look(page, width)

        yield of


def test_a_page_that_is_right(look):
    seen = look(f'<p>Words that fit.</p><img src="data:image/gif;base64,{DOT}">')
    assert (seen.errors, seen.requests, seen.hidden_pictures, seen.overflowing) == ([], [], [], [])
    assert seen.pictures == 1


def test_an_error_on_the_console(look):
    assert look("<script>console.error('no')</script>").errors
    assert look("<script>missing()</script>").errors


def test_a_request_that_leaves(look):
    assert look('<img src="http://127.0.0.1:9/picture.png">').requests


def test_a_picture_that_is_not_there(look):
    assert look('<img src="missing.png">').hidden_pictures
    assert look('<img src="data:image/png;base64,AAAA">').hidden_pictures


def test_text_that_sticks_out(look):
    assert look(f"<p>{'wide' * 40}</p>").overflowing
    assert look(f'<div style="overflow:hidden;width:80px">{"cut" * 20}</div>').overflowing
    assert not look(f'<pre style="overflow-x:auto">{"wide" * 40}</pre>').overflowing
    assert not look(f"<p>{'wide' * 20}</p>", 1280).overflowing
