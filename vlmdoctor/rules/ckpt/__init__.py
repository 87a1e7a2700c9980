"""Rules on checkpoints: were the weights loaded, and can a run be saved and resumed?"""
