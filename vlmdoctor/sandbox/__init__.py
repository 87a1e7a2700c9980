"""Running what is foreign and leaving no trace, and reading what is foreign within limits.

`reach` walks what the user's objects lead to; `holders`, `sources`, `tensors` and `process` keep and restore;
`iterators` puts copies or refusals in the place of what moves when it is read; `signals` keeps interruptions
out of the critical moments. `files`, `weight_files`, `limited` and `closed` bound foreign files and text.
"""
