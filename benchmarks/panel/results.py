"""Results of the panel as JSON: every dataset with its systems."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from benchmarks.panel.scores import DatasetScores
from retrieval.errors import DatasetError


class PanelResults(BaseModel):
    """Content of panel.json. `failures`: systems without a result, by dataset and title, with the reason."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    command: str
    threads: int
    datasets: dict[str, DatasetScores] = {}
    failures: dict[str, dict[str, str]] = {}


def read_results(path: Path) -> PanelResults:
    """Read panel.json. Raises DatasetError if it is missing or has another form."""
    try:
        return PanelResults.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        raise DatasetError(f"{path} cannot be read as panel results: {error}. Run quality.py --panel again.") from error


def write_results(results: PanelResults, path: Path) -> None:
    """Write panel.json atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".json.tmp")
    temporary.write_text(results.model_dump_json(indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
