"""What kind of model: everything that knows how a model is loaded, asked, trained on and saved."""
