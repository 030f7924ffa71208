"""The version, in a module of its own: the package itself offers what stands high above those that need it."""

__version__ = "0.1.0"
