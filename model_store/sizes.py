"""Sizes in words, the one way that all parts of the product write them."""


def size_text(count: int) -> str:
    """Format bytes as disks and downloads are labelled, in powers of ten: 1.2 GB."""
    value, units = float(count), ["B", "kB", "MB", "GB", "TB", "PB"]
    while value >= 999.95 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} B" if units[0] == "B" else f"{value:.1f} {units[0]}"
