"""JUnit XML as CI systems read it (Jenkins, GitLab, GitHub actions that publish tests): requirements as test cases."""

import re
from typing import Any
from xml.etree import ElementTree

from gencli.escape import printable
from gencli.reports import numbers, subject

# Characters that XML 1.0 cannot contain, not even escaped (production 2, Char).
_NOT_XML = re.compile("[^\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(document: dict[str, Any]) -> str:
    """One suite; a requirement that is not met is a failure, and the numbers are properties."""
    results = document["requirements"]
    counts = {"tests": str(len(results)), "failures": str(sum(not result["passed"] for result in results)),
              "errors": "0", "skipped": "0"}
    root = ElementTree.Element("testsuites", {"name": "gencli evaluate", **counts})
    suite = ElementTree.SubElement(root, "testsuite", {"name": _clean(subject(document)), **counts})
    properties = ElementTree.SubElement(suite, "properties")
    for name, metric in numbers(document):
        value = "not measured" if metric["value"] is None else repr(metric["value"])
        ElementTree.SubElement(properties, "property", {"name": _clean(name), "value": value})
    for result in results:
        case = ElementTree.SubElement(suite, "testcase", {"classname": "gencli.evaluate",
                                                          "name": _clean(result["requirement"])})
        if not result["passed"]:
            reason = _clean(result["reason"])
            ElementTree.SubElement(case, "failure", {"type": "RequirementError", "message": reason}).text = reason
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _clean(text: str) -> str:
    return _NOT_XML.sub("�", printable(text))
