"""What every part uses: console, processes, files, errors."""
