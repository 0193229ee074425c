"""What each command does. Heavy packages are imported by the command that needs them."""
