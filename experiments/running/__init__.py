"""Running of commands: flags, signals, exit codes, processes side by side."""
