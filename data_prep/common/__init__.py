"""What every command needs: errors and exit codes, files that are written whole, manifests, the ranks of a launcher."""
