"""The image file: layout (pure codec), backing (the only place that touches the host's files), image, check."""
