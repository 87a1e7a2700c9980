"""Vision-language models as people write them themselves, each in one file and in its own manner."""
