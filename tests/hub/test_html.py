"""The reader of saved HTML, on pages that are whole and on damaged ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.hub._html import Page, read_html

ABSTRACT = "An abstract of a paper, which is longer than any label."
PAGE = f"""<!doctype html><html><head><title>Daily Papers</title><script>var t = "<article>no</article>";</script></head>
<body><main>
<div class="SVELTE_HYDRATER contents" data-target="DailyPapers" data-props="{{&quot;a&quot;: 1}}"></div>
<div data-target="Other" data-props="{{}}"></div>
<article class="x"><a href="/papers/2407.00550"><img src="t.png"></a><svg><path d="M0"/>icon</svg>
<h3>  A <em>first</em>
title </h3><p>Short label</p><p>{ABSTRACT} <b>More</b> &amp; more.</p><time datetime="2024-06-29T16:00:00">Jun 29</time>
<ul><li>· 3 authors</li></ul></article>
<article><h3><a href="https://example.org/papers/2507.16884v2#community">Second</a></h3></article>
</main></body></html>"""


def read(html: str) -> Page:
    return read_html(html, "DailyPapers")


def test_a_whole_page() -> None:
    page = read(PAGE)
    assert page.props == ['{"a": 1}']
    first, second = page.articles
    assert " ".join(first.title.split()) == "A first title"
    assert (first.arxiv, first.time) == ("2407.00550", "2024-06-29T16:00:00")
    assert first.abstract == f"{ABSTRACT} More & more."
    assert first.lines[-1] == "· 3 authors"
    assert (second.title, second.arxiv, second.abstract, second.lines) == ("Second", "2507.16884", "", ["Second"])


def test_scripts_and_pictures_have_no_text() -> None:
    text = read(PAGE).text
    assert "var t" not in text
    assert "icon" not in text
    assert "A first title" in text.split("\n")


def test_without_a_heading_the_link_is_the_title() -> None:
    (article,) = read(
        '<article><a href="/about">No</a><a href="/papers/2407.00550"> Yes </a><a>No</a></article>'
    ).articles
    assert (article.title, article.arxiv) == ("Yes", "2407.00550")


def test_end_tags_may_be_missing() -> None:
    page = read(f"<article><h3>One</h3><p>{ABSTRACT}<p>Label<article><h3>Two<p>{ABSTRACT}")
    assert [(article.title, article.abstract) for article in page.articles] == [("One", ABSTRACT), ("Two", ABSTRACT)]


@pytest.mark.parametrize("cut", range(0, len(PAGE), 7))
def test_a_page_may_be_cut_anywhere(cut: int) -> None:
    page = read(PAGE[:cut])
    assert len(page.articles) <= 2
    for article, title in zip(page.articles, ("A first title", "Second"), strict=False):
        assert title.startswith(" ".join(article.title.split()))


@given(
    st.lists(st.sampled_from(["<article>", "</article>", "<h3>", "</h3>", "<p>", "<a href='/papers/2407.00550'>", "x"]))
)
def test_tags_may_come_in_any_order(pieces: list[str]) -> None:
    page = read("".join(pieces))
    assert len(page.articles) == pieces.count("<article>")


@given(st.text())
def test_anything_is_read(text: str) -> None:
    read("<div>" + text)
