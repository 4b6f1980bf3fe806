"""``python -m tokenlens_cli``, for ``torchrun -m tokenlens_cli``."""

from tokenlens_cli.app import app

if __name__ == "__main__":
    app(prog_name="tokenlens")
