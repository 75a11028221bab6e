"""Options of `screen run` for servers that compute instead of this process."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atomsieve.cli.common import SERVER, ClientOptions
from atomsieve.cli.groups import given_options

if TYPE_CHECKING:
    from atomsieve.screen.engine.servers import RemoteOptions


@dataclass(frozen=True)
class EndpointOptions:
    """Servers, and how to reach them."""

    endpoint: Annotated[
        str | None,
        typer.Option(
            "--endpoint",
            help="Servers that compute instead, e.g. grpc://h1:8001,h2:8001.",
            rich_help_panel=SERVER,
            show_default=False,
        ),
    ] = None
    model: Annotated[str, typer.Option("--model", help="Name of the ensemble there.", rich_help_panel=SERVER)] = "gfm"
    client: ClientOptions = field(default_factory=ClientOptions)
    deadline: Annotated[
        float,
        typer.Option(
            "--deadline", help="Seconds for one answer; up to 8 times as many of a busy server.", rich_help_panel=SERVER
        ),
    ] = 60.0
    patience: Annotated[
        float, typer.Option("--patience", help="Seconds to go on without any answer.", rich_help_panel=SERVER)
    ] = 300.0

    def resolve(self, ctx: Any) -> RemoteOptions | None:
        """Return the servers that the command line names, or None.

        Raises
        ------
        UsageError
            for an option that goes only with servers, or not with them.
        """
        from atomsieve.errors import UsageError
        from atomsieve.screen.engine.servers import OF_SERVERS, RemoteOptions, server_option_error

        given = given_options(ctx)
        if self.endpoint is None:
            for name in ("model", "token_file", "tls_ca", "tls_cert", "tls_key", "deadline", "patience"):
                if name in given:
                    raise UsageError(f"--{name.replace('_', '-')} goes with --endpoint; name a server, or leave it out")
            return None
        for name in given.intersection(OF_SERVERS):
            raise server_option_error(name, ctx.params[name])
        return RemoteOptions(self.endpoint, self.model, self.client.credentials(), self.deadline, self.patience)
