"""The ground floor: files, hashes, downloads, errors, signals. Imports nothing of xdyna; everybody may import it."""
