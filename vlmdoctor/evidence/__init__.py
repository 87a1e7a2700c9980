"""Evidence: what was observed, as frozen dataclasses of plain values. docs/evidence.md lists all kinds.

One module for each kind. Beside the dataclasses stand `DEPTH`, how deep into a run one has to go for them,
and `PROBE`, the module whose `probe(subject, gather)` fills them, or `GIVEN`, why there is none where it is
only handed in. Nothing here measures or judges, and nothing imports torch.
"""
