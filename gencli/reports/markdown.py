"""A summary in GitHub-flavoured Markdown, for the summary page of a CI job (`>> "$GITHUB_STEP_SUMMARY"`)."""

import re
from typing import Any

from gencli.metrics.requirements import shown
from gencli.reports import subject, verdict


def markdown(document: dict[str, Any]) -> str:
    """The verdict, the requirements and, collapsed, all numbers."""
    results, metrics = document["requirements"], document["metrics"]
    mark = "" if not results else "✅ " if document["passed"] else "❌ "
    lines = [f"### {mark}{verdict(document)}", "", f"{_plain(subject(document))}, {document['data']['n']:,} examples.",
             ""]
    if results:
        lines += ["| | requirement | found |", "|---|---|---|"]
        lines += [f"| {'✅' if r['passed'] else '❌'} | {_plain(r['requirement'])} | {_plain(r['reason'])} |"
                  for r in results]
        lines.append("")
    lines += [f"<details{'' if results else ' open'}><summary>{len(metrics)} numbers</summary>", "",
              "| metric | value | unit | kind | n |", "|---|---:|---|---|---:|"]
    lines += [f"| {_plain(m['name'])} | {_value(m)} | {_plain(m['unit'])} | {m['kind']} | {m['n']:,} |"
              for m in metrics]
    return "\n".join([*lines, "", "</details>", ""])


def _value(metric: dict[str, Any]) -> str:
    return "not measured" if metric["value"] is None else shown(metric["value"], metric["error"])


def _plain(text: str) -> str:
    """Text escaped for Markdown, on one line of a table."""
    return re.sub(r"([\\`*_{}\[\]<>#|~&$!@])", r"\\\1", " ".join(text.split()))
