"""Other tools on the same cases: each in an environment of its own, used as its README says.

One file for each tool holds how it is called and what its checks mean in this benchmark's words: which of
vlmdoctor's rules would name the same cause. A tool's alarm is right where such a rule would be, so that both
are judged by one measure (`score.accepts`).
"""
