"""`vlmdoctor look`: what the model is really given, drawn in the terminal or as a page."""
