"""The results folder: columns, chunks, files, ledger, and the questions that it answers."""
