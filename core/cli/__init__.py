"""The command line: arguments, commands, and how their events look in a terminal."""
