"""The command line of tokenlens, one file per command. docs/add-a-command.md shows how to add one."""
