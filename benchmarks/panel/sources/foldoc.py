"""The Free On-line Dictionary of Computing: two sets.

foldoc-links: term → terms to which its article links. Short queries; the article is not shown.
foldoc-terms: article → its terms. Long queries; a label has one positive, so test labels are unseen in training.
"""

import gzip
import re
from collections.abc import Iterator, Mapping

from benchmarks.panel.table import Row

DICTIONARY = "./usr/share/dictd/foldoc.dict.dz"
LINK = re.compile(r"\{([^{}]+)\}")
SOURCE = re.compile(r"\[[^\]]*\]\.?|\(\d{4}-\d\d-\d\d\)|\{?\(?https?://\S*")  # references, date, addresses
SUBJECT = re.compile(r"<[^>]*>")
MAX_WORDS = 60


def rows_of_links(files: Mapping[str, bytes]) -> Iterator[Row]:
    """Yield a row per article with links to other articles: its first term, and the first terms of the others."""
    articles = list(_articles(files))
    first_terms = {term.casefold(): terms[0] for terms, _ in articles for term in terms}
    for terms, article in articles:
        links = (" ".join(link.split()).casefold() for link in LINK.findall(article))
        yield Row(terms[0], [first_terms[link] for link in links if link in first_terms])


def rows_of_terms(files: Mapping[str, bytes]) -> Iterator[Row]:
    """Yield a row per article: its first words, and its terms."""
    for terms, article in _articles(files):
        text = SUBJECT.sub(" ", LINK.sub(r"\1", SOURCE.sub(" ", article)))
        yield Row(" ".join(text.split()[:MAX_WORDS]), terms)


def _articles(files: Mapping[str, bytes]) -> Iterator[tuple[list[str], str]]:
    """Yield the terms of each article, and its text.

    Terms are the lines without indentation that follow a blank line, or another such line. Other lines without
    indentation belong to the text. Articles about the dictionary itself are left out.
    """
    terms, article, starts = list[str](), list[str](), True
    for line in [*gzip.decompress(files[DICTIONARY]).decode().splitlines(), "", "end"]:
        if line and starts and not line.startswith(" "):
            if article and not terms[0].startswith("00-database"):
                yield terms, "\n".join(article)
            terms, article = [line.strip()] if article else [*terms, line.strip()], []
        elif line.strip():
            article.append(line)
        starts = not line.strip() or not article
