"""What makes committed files: the embedded backbone, README's tree, the picture of the rooms."""
