"""One process and its devices: what a training runs on. It knows nothing of models, options and the loop."""
