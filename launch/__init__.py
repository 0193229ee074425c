"""The command line, and the ways a setting is run."""
