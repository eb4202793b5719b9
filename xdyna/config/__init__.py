"""Every schema, one loader, one grammar for all programs."""
