"""Running the user's objects and leaving no trace: what they reach is walked, kept, and restored in place.

`reach` walks; `holders`, `sources`, `tensors` and `process` keep and restore; `iterators` puts copies or
refusals in the place of what moves when it is read; `signals` keeps interruptions out of the critical moments.
"""
