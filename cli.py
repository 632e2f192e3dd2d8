"""The entry of the `stitch` command. Its parts are in stitch/commands/."""

from stitch.commands.app import app
from stitch.commands.signals import stop_on_sigterm

__all__ = ["app", "main"]


def main() -> None:
    stop_on_sigterm()
    app()


if __name__ == "__main__":
    main()
