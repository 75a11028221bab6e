"""Old place of `atomsieve.remote.Credentials`; kept for programs written before release 0.1.0."""

from atomsieve.remote.credentials import Credentials

__all__ = ["Credentials"]
