"""What validation finds in a COCO data set, and the report of it."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from shards.errors import BadInput


@dataclass(frozen=True)
class Finding:
    """One defect.

    Attributes:
        severity: "error" (refused unless skipped or repaired) or "warning" (listed, never refused).
        kind: a short stable name, for example "polygon_odd".
        file: the file the user has to open: the annotation file or an image.
        image_id, annotation_id: what it concerns, where known.
        message: what is wrong, with the offending value.
        remedy: what to do about it.
        action: what was done: "refused", "skipped", "kept", or what `--repair` did.
        repair: what `--repair` makes of it; None where nothing is certain, and it stays as it is.
    """

    severity: str
    kind: str
    file: str
    message: str
    remedy: str
    image_id: int | None = None
    annotation_id: int | None = None
    action: str = "kept"
    repair: str | None = None

    @property
    def line(self) -> str:
        """One line naming file, ids, defect and remedy."""
        ids = [
            f"{name} {value}"
            for name, value in (("annotation", self.annotation_id), ("image", self.image_id))
            if value is not None
        ]
        where = ", ".join([self.file, *ids])
        return " ".join(f"{where}: {self.message}; {self.remedy}".split())


# What happens to a finding where nobody asks for anything else.
ACTION = {"error": "refused", "warning": "kept"}


class Refused(BadInput):
    """The data set has errors; the report lists all of them."""


def refusal_of(findings: Iterable[Finding], report_path: str) -> Refused | None:
    """Return the first refused error's line and how many more the report lists, None if there is none."""
    refused = [finding for finding in findings if finding.action == "refused"]
    if not refused:
        return None
    more = f" ({len(refused) - 1} more in {report_path})" if len(refused) > 1 else ""
    return Refused(refused[0].line + more)


def report_of(findings: list[Finding], read: dict[str, int], kept: dict[str, int]) -> dict:
    """Return the content of report.json.

    Args:
        findings: in the order of the source.
        read, kept: number of "images" and "annotations" in the source and in the shards.
    """
    errors = Counter(f.kind for f in findings if f.severity == "error")
    warnings = Counter(f.kind for f in findings if f.severity == "warning")
    return {
        "read": read,
        "kept": kept,
        "dropped": {name: read[name] - kept[name] for name in read},
        "errors": dict(sorted(errors.items())),
        "warnings": dict(sorted(warnings.items())),
        "findings": [asdict(finding) for finding in findings],
    }
