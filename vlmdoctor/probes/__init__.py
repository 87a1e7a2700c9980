"""From a Subject to evidence: one `probe(subject, gather)` for each kind, in folders by area.

The file of the evidence names its probe (`PROBE`) and how deep into a run that goes (`DEPTH`).
"""
