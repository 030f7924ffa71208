"""Kinds of example, a file each; `gencli.kind` is their contract."""
