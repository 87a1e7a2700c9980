"""Foreign files and foreign text: read within limits, and worked on within limits. Imports no torch."""
