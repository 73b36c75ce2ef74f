"""Exchange of weights with Hugging Face's ViTMAE."""
