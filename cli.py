"""The entry of the `stitch` command. Its parts are in stitch/commands/."""

from stitch.commands.app import app

__all__ = ["app", "main"]


def main() -> None:
    app()


if __name__ == "__main__":
    main()
