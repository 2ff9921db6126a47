"""From a pinned source to an audited wheel: ``python -m build_tools COMMAND``."""
