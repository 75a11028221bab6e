"""Command line: typer apps, one file per verb, imported lazily."""
