"""The child process that works, and the client that talks to it."""
