"""Run the command line with ``python -m tokenlens_cli`` or ``torchrun -m tokenlens_cli``."""

from tokenlens_cli.app import app

if __name__ == "__main__":
    app(prog_name="tokenlens")
