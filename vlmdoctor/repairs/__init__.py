"""Repairs that are tried on a copy: one file each, named after the rule whose findings it fixes."""
