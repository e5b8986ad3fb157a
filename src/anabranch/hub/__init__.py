"""Finds papers: the catalogue, the import of saved pages, and search."""

from anabranch.hub.catalogue import Catalogue, Change, Entry, normalize_arxiv, normalize_title
from anabranch.hub.importers import ImportReport, Skipped, import_page, parse_saved_page
from anabranch.hub.search import Document, Hit, Ranker, TextIndex, document, search
from anabranch.hub.tables import catalogue_table

__all__ = [
    "Catalogue",
    "Change",
    "Document",
    "Entry",
    "Hit",
    "ImportReport",
    "Ranker",
    "Skipped",
    "TextIndex",
    "catalogue_table",
    "document",
    "import_page",
    "normalize_arxiv",
    "normalize_title",
    "parse_saved_page",
    "search",
]
