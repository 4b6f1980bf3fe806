"""The command line of tokenlens: one file per command; see docs/add-a-command.md."""
