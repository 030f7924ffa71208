"""A summary in GitHub-flavoured Markdown, for the summary page of a CI job (`>> "$GITHUB_STEP_SUMMARY"`)."""

from typing import Any

from gencli.escape import markdown_text as plain
from gencli.metrics.requirements import shown
from gencli.reports import subject, verdict


def markdown(document: dict[str, Any]) -> str:
    """The verdict, the requirements and, collapsed, all numbers."""
    results, metrics = document["requirements"], document["metrics"]
    mark = "" if not results else "✅ " if document["passed"] else "❌ "
    lines = [f"### {mark}{verdict(document)}", "", f"{plain(subject(document))}, {document['data']['n']:,} examples.",
             ""]
    if results:
        lines += ["| | requirement | found |", "|---|---|---|"]
        lines += [f"| {'✅' if r['passed'] else '❌'} | {plain(r['requirement'])} | {plain(r['reason'])} |"
                  for r in results]
        lines.append("")
    lines += [f"<details{'' if results else ' open'}><summary>{len(metrics)} numbers</summary>", "",
              "| metric | value | unit | kind | n |", "|---|---:|---|---|---:|"]
    lines += [f"| {plain(m['name'])} | {_value(m)} | {plain(m['unit'])} | {m['kind']} | {m['n']:,} |"
              for m in metrics]
    lines += ["", "</details>", ""]
    if neighbours := document.get("neighbours"):
        lines += ["| sample | nearest training examples (distance) |", "|---:|---|"]
        for one in neighbours:
            near = ", ".join(f"{example['example']} ({example['distance']:.4g})" for example in one["nearest"])
            lines.append(f"| {one['sample']} | {near} |")
        lines.append("")
    return "\n".join(lines)


def _value(metric: dict[str, Any]) -> str:
    return "not measured" if metric["value"] is None else shown(metric["value"], metric["error"])
