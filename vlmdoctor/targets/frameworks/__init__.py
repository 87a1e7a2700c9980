"""A LightningModule or a Trainer of transformers as a Subject."""
