"""``python -m sdekit``."""

from .cli import app

app(prog_name="sdekit")
