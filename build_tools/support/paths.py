"""Where the repository lies: everything that is read or built in it is named from here."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
