"""What every command needs: errors, exit codes, files written whole or not at all, manifests, ranks."""
