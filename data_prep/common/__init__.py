"""What every command needs: errors, exit codes, files that are written whole, manifests, ranks."""
