"""Rules about checkpoints: were the weights loaded, and will what is saved come back?"""
