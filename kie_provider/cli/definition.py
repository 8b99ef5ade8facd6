"""What ``airflow`` learns of the commands. It asks at each of its starts, whatever the command."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow.cli.cli_config import CLICommand


def get_commands() -> list[CLICommand]:
    """Return the commands of ``airflow kie``."""
    from airflow.cli.cli_config import ActionCommand, Arg, GroupCommand, lazy_load_command

    conn_id = Arg(("--conn-id",), help="Connection of type kie", default="kie_default")  # type: ignore[no-untyped-call]
    test = ActionCommand(
        name="test",
        help="Call the receiver at its public address, as Kie does, and say what happened",
        func=lazy_load_command("kie_provider.cli.callbacks.test"),
        args=(conn_id,),
    )
    callbacks = GroupCommand("callbacks", "Kie's callbacks", subcommands=(test,))
    return [GroupCommand("kie", "Kie.ai", subcommands=(callbacks,))]
