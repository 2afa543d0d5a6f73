"""Mistakes that a user can mend: one clear line, exit code 2, no traceback (training/cli.py)."""


class UserError(Exception):
    """Raised for bad input. The message is one line and says what to do about it."""
