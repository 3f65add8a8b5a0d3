"""The command line: each command parses, then calls the library."""
