"""The table of presets in RESULTS.md, made from the ledger beside it.

    sh examples/ledger.sh tests/benchmarks/ledger.jsonl pca/mnist     # measure; appends a line
    python tests/benchmarks/ledger.py                                 # write the table

Of a preset that was measured several times the last line counts.
"""

import json
from pathlib import Path
from typing import Any

from gencli.metrics.requirements import shown

FOLDER = Path(__file__).parent
LEDGER, RESULTS = FOLDER / "ledger.jsonl", FOLDER / "RESULTS.md"
BEGIN, END = "<!-- from ledger.jsonl by ledger.py -->\n", "<!-- end of ledger -->\n"


def table(lines: list[dict[str, Any]]) -> str:
    """The newest line of each preset as a row of Markdown."""
    newest = {(line["family"], line["preset"]): line for line in lines}
    rows = ["| family | preset | number | measured | expected | published | processor time | machine | date |",
            "|---|---|---|---|---|---|---|---|---|"]
    for (family, preset), line in sorted(newest.items()):
        low, high = line["expected"]
        published = "" if line["published"] is None else f"{line['published']:g}"
        seconds = "" if line["processor_seconds"] is None else f"{line['processor_seconds']:.3g} s"
        machine = "{cpu}, {cores} core{s}, torch {torch}".format_map(
            {**line["machine"], "s": "" if line["machine"]["cores"] == 1 else "s"})
        value = "not measured" if line["value"] is None else shown(line["value"], line["error"])
        expected = f"{low:g} to {high:g}{'' if line['passed'] else ': **missed**'}"
        cells = [family, preset, f"{line['metric']}, {line['kind']}", f"**{value}** {line['unit']}", expected,
                 published, seconds, machine, line["date"]]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def with_table(text: str, lines: list[dict[str, Any]]) -> str:
    """The text of RESULTS.md with the table of these lines between its marks."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}{table(lines)}{END}{rest.partition(END)[2]}"


def read(path: Path = LEDGER) -> list[dict[str, Any]]:
    """The lines of a ledger."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    RESULTS.write_text(with_table(RESULTS.read_text(encoding="utf-8"), read()), encoding="utf-8")
