"""Evidence: what was observed, as frozen dataclasses of plain values.

One module for each phase holds the dataclasses, `DEPTH` (how deep into a run it has to go) and
`probe(subject, gather)`, which fills them. Nothing here judges.
"""
