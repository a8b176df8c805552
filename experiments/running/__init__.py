"""How commands run: flags, signals, processes side by side, tables of runs."""
