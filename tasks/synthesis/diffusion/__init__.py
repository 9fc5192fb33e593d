"""Loading, training and sampling latent diffusion models in the Stable Diffusion layout."""
