"""The PCI ID database: name of a device → its vendor; name of a card → its vendor and the device on it.

Names with model codes; one or two labels per query.
"""

from collections.abc import Iterator, Mapping

from benchmarks.panel.table import Row

PCI_IDS = "./usr/share/misc/pci.ids"
END_OF_VENDORS = "C "  # the first device class


def rows(files: Mapping[str, bytes]) -> Iterator[Row]:
    """Yield a row per device and per subsystem. The file has vendors, indented devices, and subsystems below them."""
    lines = [line for line in files[PCI_IDS].decode().splitlines() if line and not line.startswith("#")]
    vendors = {line[:4]: line[4:].strip() for line in lines if not line.startswith(("\t", END_OF_VENDORS))}
    vendor = device = ""
    for line in lines:
        if line.startswith(END_OF_VENDORS):
            return
        code, _, name = line.strip().partition("  ")
        if line.startswith("\t\t"):
            subvendor = vendors.get(code.split()[0], vendor)
            yield Row(name, (subvendor, device))
        elif line.startswith("\t"):
            device = name
            yield Row(name, (vendor,))
        else:
            vendor = name
