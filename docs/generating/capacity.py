"""Calculate the capacity table from the formulas of the bundle format and of the service's memory check."""

from service.bundles.memory_check import ENCODER_TIMES, ENGINE_BYTES, INDEX_TIMES, TOKENIZER_TIMES

LABELS = (100_000, 1_000_000, 3_000_000, 10_000_000)
LINKS = 16  # that export chooses for most sets; `diptych export --m`
SCALES = 8  # bytes of the scales of a label vector in int8
ARROW = 30  # bytes of a label's text and id in the measured bundles
MARK = "<!-- capacity table -->"
# dimensions, dimensions of the index, bytes of the query encoder, the label encoder and the tokenizer
MODELS = {
    "static": (513, 160, 83e6, 82e6, 0.5e6),
    "MiniLM, int8": (769, 160, 61e6, 92e6, 0.5e6),
}


def index_bytes(labels: int, width: int, links: int) -> float:
    """Return the bytes of an hnswlib file: vectors, links of the lowest level, labels, nodes of higher levels."""
    return labels * (4 * width + 8 * links + 16 + 4 * (links + 1) / (links - 1))


def table() -> str:
    """Render the table as Markdown."""
    rows = [
        "| labels | encoder | D | W | bundle on disk | memory of one engine | two engines |",
        "|---:|---|---:|---:|---:|---:|---:|",
    ]
    for labels in LABELS:
        for name, (dim, width, query, label, tokenizer) in MODELS.items():
            index = index_bytes(labels, width, LINKS)
            disk = labels * (dim + SCALES + ARROW) + index + query + label + tokenizer
            copied = INDEX_TIMES * index + labels * (dim + SCALES + ARROW)
            memory = ENGINE_BYTES + copied + ENCODER_TIMES["float32"] * query + TOKENIZER_TIMES * tokenizer
            rows.append(
                f"| {labels:,} | {name} | {dim} | {width} | {_size(disk)} | {_size(memory)} | {_size(2 * memory)} |"
            )
    return "\n".join(rows)


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB"
